"""Any invalid value of a key is reported in one plain sentence, never in pydantic's words."""

import copy
import datetime
import math
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from distrain.config import Recipe, load_recipe
from distrain.config.parts import MetricPart
from distrain.config.profile import LaunchOptions, read_options
from distrain.config.validation import describe, keys_of, similar_keys
from distrain.errors import LaunchError, RecipeError
from distrain.launchers.profile_files import read_launch_profile

WRONG: list[Any] = [
    *("zzz", "", "a\nb", "\x00", "2h", "1e999", "top1,f1", "mine:f"),
    *(True, -1, 0, 0.5, 10**40, math.nan, math.inf, None),
    *([], [[]], [None], ["zzz"], [-1, "x"], [True], [{"zzz": 1}], [{}], [[1, 2, 3]]),
    *({}, {"zzz": 1}, {1: 2}, {None: None}, {"name": [1]}, {"every_steps": "x"}, datetime.date(2024, 2, 3)),
]
PYDANTIC = [
    *("Input should be", "valid dictionary", "Extra inputs", "type=", "Field required", "valid integer", "pydantic"),
    *("valid string", "valid tuple", "valid boolean", "parsing", "instance of", "another value", "Keys should"),
]
KEYS = list(keys_of(Recipe))


def sentences(tree: dict[str, Any], key: str) -> Iterator[tuple[Any, str]]:
    """Yield each value of the key that the recipe refuses, with the message."""
    *sections, leaf = key.split(".")
    for value in WRONG:
        changed = copy.deepcopy(tree)
        node = changed
        for section in sections:
            node = node[section]
        node[leaf] = value
        try:
            Recipe.model_validate(changed)
        except ValidationError as error:
            yield value, describe(error, Recipe, changed, noun="the recipe")


@pytest.mark.parametrize("key", KEYS)
def test_every_key_refuses_wrong_values_in_a_plain_sentence(key: str) -> None:
    tree = yaml.safe_load(load_recipe("digits", overrides=["train.lookahead={}"]).to_yaml())
    refused = list(sentences(tree, key))
    assert len(refused) >= 8, key
    for value, text in refused:
        assert not any(words in text for words in PYDANTIC), text
        assert text.isprintable(), text
        section = key.partition(".")[0]  # another key of it may be what does not go with the value
        assert section in text or any(f"{other}." in text for other in Recipe.model_fields), (value, text)


def test_every_key_of_a_launch_profile_refuses_wrong_values_in_a_plain_sentence(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for key in LaunchOptions.model_fields:
        for value in WRONG:
            file.write_text(yaml.safe_dump({key: value}))
            try:
                read_launch_profile(str(file))
            except LaunchError as error:
                assert not any(words in str(error) for words in PYDANTIC), error


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"devise": "cpu"}, "it has no key devise; did you mean device?"),
        ({"nodes": [1]}, "nodes=[1]: must be a whole number or text"),
        ({"launcher": "torchrum"}, "launcher=torchrum: must be inprocess, torchrun, accelerate or slurm; did you mean"),
        (
            {"distributed_type": "MULTI_GPU", "num_processes": 2, "num_machines": 2, "machine_rank": "x"},
            "machine_rank=x",
        ),
    ],
)
def test_launch_profile_is_refused_in_plain_words(tmp_path: Path, tree: dict[str, Any], words: str) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(LaunchError) as caught:
        read_launch_profile(str(tmp_path / "mine.yaml"))
    assert words in str(caught.value)


def test_refused_option_is_named() -> None:
    with pytest.raises(LaunchError, match=r"^--launcher slrum: must be .* did you mean slurm\?$"):
        read_options(launcher="slrum")
    with pytest.raises(LaunchError, match=r"^--node-rank -1: must be at least 0$"):
        read_options(node_rank=-1)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("epochs=3", "the recipe has no key epochs; did you mean train.epochs?"),
        ("lr=0.1", "the recipe has no key lr; did you mean optimizer.lr?"),
        ("augment.val=[]", "the recipe has no key augment.val; did you mean augment.eval?"),
        ("train.epoch=3", "the recipe has no key train.epoch; did you mean train.epochs?"),
        ("train.lr=3", "the recipe has no key train.lr; did you mean optimizer.lr?"),
        ("optimiser.lr=3", "the recipe has no key optimiser.lr; did you mean optimizer.lr?"),
        (
            "train.batch_size=3",
            "the recipe has no key train.batch_size; did you mean data.batch_size or eval.batch_size?",
        ),
        ("workers=3", "the recipe has no key workers; did you mean data.num_workers?"),
        (
            "train.lookahead={step: 3}",
            "the recipe has no key train.lookahead.step; did you mean train.lookahead.every_steps?",
        ),
        (
            "data.more=[{source: digits, pat: x}]",
            "the recipe has no key data.more.0.pat; did you mean data.more.0.path?",
        ),
        ("zzz=3", "the recipe has no key zzz"),
        ("data.batch_size=abc", "data.batch_size=abc: must be a whole number"),
        ("data.batch_size=1.5", "data.batch_size=1.5: must be a whole number"),
        ("data.batch_size=null", "data.batch_size=null: must be a whole number"),
        ("train.seed=-1", "train.seed=-1: must be at least 0"),
        ("optimizer.lr=.inf", "optimizer.lr=.inf: must be a finite number"),
        ("optimizer.momentum=1", "optimizer.momentum=1: must be less than 1"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: must be a list of 2"),
        ("optimizer.betas=[0.9, 0.9, 0.9]", "optimizer.betas=[0.9, 0.9, 0.9]: must be a list of 2 at most"),
        ("optimizer.name=adamm", "optimizer.name=adamm: must be sgd, adam, adamw, rmsprop, muon, "),
        ("optimizer.name=adamm", "torch.optim:NAME, timm.NAME or package.module:name; did you mean adam?"),
        (
            "schedule.name=cosin",
            "poly, restarts, wsd, plateau or package.module:name; did you mean cosine?",
        ),
        ("log={wandb: on}", "log.wandb=true: must be offline, online or disabled; YAML reads on, off, yes and no as"),
        ("log.wandb=on", "log.wandb=on: must be offline, online or disabled"),
        ("data.drop_last=maybe", "data.drop_last=maybe: must be true or false"),
        ("model=resnet18", "model=resnet18: must be a section of keys; did you mean model.name=resnet18?"),
        ("schedule=null", "schedule=null: must be a section of keys"),
        ("model={name: 18}", 'model.name=18: must be text; quote it: "18"'),
        ("data.batch_size=,", "data.batch_size=,: must be a whole number"),
        ("augment.mean=[0.5", "--set augment.mean=[0.5 cannot be read as YAML"),
        ("eval.metrics=top1,f1", "eval.metrics=top1,f1: must be a list: [top1,f1]"),
        ("augment.mean=0.5", "augment.mean=0.5: must be a list: [0.5]"),
        ("augment.mean=[0.5, x]", "augment.mean.1=x: must be a number"),
        ("model.arguments={1: 2}", "model.arguments has a key 1, which must be text; quote it"),
        ("train.max_time=.h", "train.max_time: .h is not a time"),
        ("data.delimiter=ab", "data.delimiter=ab: must be text no longer than 1"),
        (
            'data.delimiter=""',
            '"": must be text no shorter than 1; quote a character that means something else in YAML: "|"',
        ),
        ("model={name: {mine: null}}", "model.name={mine: null}: must be text; quote what ends in a colon"),
        ("name=a/b", "name=a/b: must be a name of letters, digits"),
    ],
)
def test_value_is_refused_in_plain_words(override: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits", overrides=[override])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("eval.metrics=top1", (MetricPart(name="top1"),)),
        ("model.freeze=backbone", ("backbone",)),
        ("optimizer.no_decay=norm", ("norm",)),
    ],
)
def test_one_word_is_a_list_of_one(override: str, found: tuple[object, ...]) -> None:
    section, _, key = override.partition("=")[0].partition(".")
    recipe = load_recipe("digits", overrides=["optimizer.weight_decay=0.1", override])
    assert getattr(getattr(recipe, section), key) == found


@pytest.mark.parametrize("character", [*string.punctuation, " ", "0"])
def test_value_of_a_text_key_is_the_text_itself_whatever_yaml_makes_of_it(character: str) -> None:
    recipe = load_recipe("digits", overrides=["data.source=manifest", f"data.delimiter={character}"])
    assert recipe.data.delimiter == character


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, text) for text in ("on", "5", "1e3", "2026-01-01", "a: b", "a #b", "[x", "~", "*x")),
        *((f'"{text}"', text) for text in ("null", "|", "", "a'b")),
        ("'it''s'", "it's"),
        (" padded ", "padded"),
        ("null", None),
    ],
)
@pytest.mark.parametrize("key", ["data.path", "model.weights", "data.more.0.path"])
def test_text_key_takes_text_quoted_text_or_null(key: str, text: str, value: str | None) -> None:
    recipe = load_recipe("digits", overrides=["data.more=[{source: digits}]", f"{key}={text}"])
    found = {"data.path": recipe.data.path, "model.weights": recipe.model.weights}
    assert found.get(key, recipe.data.more[0].path) == value


def test_known_key_is_most_similar_to_itself() -> None:
    assert all(key in similar_keys(key, KEYS) or len(similar_keys(key, KEYS)) == 3 for key in KEYS)


def test_error_that_already_names_its_key_gets_no_second_one() -> None:
    class Inner(BaseModel):
        number: int

    with pytest.raises(ValidationError) as caught:
        Inner.model_validate({})
    assert describe(caught.value, Inner, {}, noun="the file") == "the file is missing number, which has no default"
