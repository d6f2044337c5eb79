"""The ranges of a sweep's parameters, and the sentences for those that are not valid."""

import pytest

from distrain.config import load_recipe
from distrain.errors import RecipeError, RunError
from distrain.service.sweeps.parameters import as_overrides, read_parameter, read_parameters
from distrain.service.sweeps.rungs import read_prune, read_rungs
from distrain.service.sweeps.spec import as_spec
from distrain.service.sweeps.suggestion import check_sampler, count_grid, suggest


def test_ranges_and_choices_are_read() -> None:
    rate, size, width, choices = read_parameters(
        ["optimizer.lr=log(1e-4, 1)", "data.batch_size=int(16,64)", "x=uniform(-1,1)", "model.name=[a, 2, null]"]
    )
    assert (rate.kind, rate.low, rate.high) == ("log", 1e-4, 1.0)
    assert size.examples == (16, 64)
    assert width.kind == "uniform"
    assert choices.choices == ("a", 2, None)


def test_what_is_stored_of_a_range_reads_back() -> None:
    for parameter in read_parameters(["a=log(1e-5, 1)", "b=int(1,3)", "c=uniform(0,0.5)", "d=[1, [x, {y: 2}]]"]):
        assert read_parameter(parameter.key, parameter.range) == parameter


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("optimizer.lr", "is not of the form KEY=RANGE"),
        ("optimizer.lr=0.1", "is one value, not a range; use log(1e-4, 1)"),
        ("optimizer.lr=lag(1e-4,1)", "there is no range lag; did you mean log?"),
        ("optimizer.lr=log(1)", "takes two numbers"),
        ("optimizer.lr=log(1,a)", "takes two numbers"),
        ("optimizer.lr=log(0,1)", "must be greater than 0"),
        ("optimizer.lr=uniform(2,1)", "must be less than the highest"),
        ("optimizer.lr=uniform(0,inf)", "must be finite"),
        ("train.epochs=int(1,2.5)", "must be whole numbers"),
        ("model.name=[a]", "two different choices or more"),
        ("model.name=[a, a]", "two different choices or more"),
        ("model.name=[a", "cannot be read"),
    ],
)
def test_invalid_range_gets_one_sentence(text: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_parameters([text])
    assert part in str(caught.value)
    assert str(caught.value).startswith("--param ")


def test_suggested_values_reach_the_recipe_unchanged() -> None:
    params = {"optimizer.lr": 1e-05, "model.name": "digits-cnn", "augment.train": ["RandomHorizontalFlip"]}
    recipe = load_recipe("digits", overrides=as_overrides(params))
    assert recipe.optimizer.lr == 1e-05
    assert recipe.augment.train[0].name == "RandomHorizontalFlip"


def test_grid_visits_each_point_once() -> None:
    parameters = read_parameters(["a=[1, 2, 3]", "b=int(0,1)"])
    assert count_grid(parameters) == 6
    points = [suggest(parameters, "grid", [], number, seed=0, sign=1) for number in range(6)]
    assert len({tuple(point.items()) for point in points}) == 6


def test_grid_over_a_range_and_unknown_sampler_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"needs a list of values for optimizer\.lr"):
        check_sampler("grid", read_parameters(["optimizer.lr=log(0.1, 1)"]))
    with pytest.raises(RecipeError, match=r"did you mean tpe\?"):
        check_sampler("tpee", read_parameters(["a=[1, 2]"]))


def test_rungs_and_rules_are_read() -> None:
    assert read_rungs("1, 3,9") == ((1, 3, 9), "epochs")
    assert read_rungs("50,150 steps") == ((50, 150), "steps")
    for text in ("3,1", "0,1", "a", "1 epoch, 2 steps", ""):
        with pytest.raises(RecipeError):
            read_rungs(text)
    with pytest.raises(RecipeError, match=r"did you mean median\?"):
        read_prune("medians")


def test_unknown_key_of_a_sweep_file_gets_one_sentence() -> None:
    with pytest.raises(RunError, match=r"it has no key trails; did you mean trials"):
        as_spec({"recipe": "digits", "params": {}, "trails": 3}, noun="sweep x.yaml")
