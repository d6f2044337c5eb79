"""Parts of a recipe are written by name, with arguments or without, and read back as they were written."""

from pathlib import Path
from typing import Any

import pytest

from distrain.config import Recipe, load_recipe, read_recipe
from distrain.config.user_code import load_factory, make_part
from distrain.errors import RecipeError

HERE = "tests.config.test_parts"


def digits(*overrides: str) -> Recipe:
    return load_recipe("digits", overrides=list(overrides))


def pair(first: int, second: int = 2) -> tuple[int, int]:
    return first, second


def raising() -> None:
    raise KeyError("inside")


ALL = [
    "eval.metrics=[top1, {torchmetrics.F1Score: {task: multiclass, num_classes: 10}}, mine:kappa, "
    "{name: mine:error, recorded_as: mistakes, higher_is_better: false}]",
    "eval.best=mistakes",
    "hooks=[mine:Watch, {mine:Count: {every: 3}}]",
    "log.loggers=[{mine:Csv: {path: log.csv}}]",
    "augment.batch=[{mine:noise: {scale: 0.1}}]",
    "data.sampling=mine:weights",
    "data.sampling_arguments.power=0.5",
]


def test_parts_are_read_back_from_what_is_written(tmp_path: Path) -> None:
    recipe, file = digits(*ALL), tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert read_recipe(file) == recipe
    assert [metric.key for metric in recipe.eval.metrics or ()] == ["top1", "F1Score", "kappa", "mistakes"]
    assert [metric.key for metric in recipe.eval.own_metrics] == ["F1Score", "kappa", "mistakes"]
    assert recipe.hooks[1].arguments == {"every": 3}
    names = "mine:weights mine:noise mine:kappa mine:error mine:Csv mine:Watch mine:Count"
    assert sorted(recipe.references) == sorted(names.split())


def test_what_sees_the_training_may_change_when_a_run_resumes() -> None:
    assert digits("hooks=[mine:Watch]", "log.loggers=[mine:Csv]").identity == digits().identity
    for change in ("augment.batch=[mine:noise]", "data.sampling=mine:weights", "eval.metrics=[mine:kappa]"):
        assert digits(change).identity != digits().identity, change


def test_recipes_without_own_parts_have_the_identity_that_they_had() -> None:
    assert digits("eval.metrics=[top1,f1]").identity["eval"]["metrics"] == ["top1", "f1"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hooks=[Watch]", ["hooks", "Watch names no code", "package.module:Class"]),
        ("hooks=[3]", ["hooks", "a hook is written"]),
        ("log.loggers=[wandb]", ["log.loggers", "wandb names no code"]),
        ("augment.batch=[MixUp]", ["augment.batch", "MixUp names no code", "augment.mixup"]),
        ("data.sampling=balnced", ["data.sampling=balnced", "did you mean balanced?"]),
        ("data.sampling_arguments.power=1", ["data.sampling_arguments", "data.sampling is uniform"]),
        ("eval.metrics=[tpo1]", ["eval.metrics", "unknown metric tpo1", "did you mean top1?"]),
        ("eval.metrics=[{top1: {k: 3}}]", ["arguments={k: 3}", "top1 is neither"]),
        ("eval.metrics=[mine:top1]", ["val/top1 would be recorded twice", "recorded_as"]),
        ("eval.metrics=[mine:a, {other:a: {}}]", ["val/a would be recorded twice"]),
        ("eval.metrics=[{name: mine:a, recorded_as: a/b}]", ["recorded_as=a/b", "letters"]),
        ("eval.metrics=[{name: mine:a, recorded_sa: b}]", ["recorded_sa"]),
        ("eval.best=kappa", ["eval.best", "unknown metric kappa"]),
    ],
)
def test_wrong_parts_are_one_sentence(override: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        digits(override)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_factory_is_called_with_the_arguments_of_the_recipe() -> None:
    assert make_part(f"{HERE}:pair", {"first": 3}, key="hooks") == (3, 2)
    assert load_factory(f"{HERE}:pair", {"second": 5}, key="hooks", given=("first",))(1, second=5) == (1, 5)
    with pytest.raises(KeyError, match="inside"):
        make_part(f"{HERE}:raising", {}, key="hooks")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("pair", {}, ["hooks=tests.config.test_parts:pair", "missing a required argument: 'first'"]),
        ("pair", {"first": 1, "third": 3}, ["third"]),
        ("HERE", {}, ["'tests.config.test_parts'", "name a function or a class"]),
        ("pari", {}, ["has no 'pari'", "did you mean pair?"]),
    ],
)
def test_factory_that_cannot_be_called_is_one_sentence(name: str, arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        make_part(f"{HERE}:{name}", arguments, key="hooks")
    assert all(word in str(caught.value) for word in words), caught.value
