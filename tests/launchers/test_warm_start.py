"""A training starts from another run's weights by the name of the run, of one of its checkpoints, or of a bundle."""

import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distrain.checkpoint.load import read_model
from distrain.config import Model, read_recipe
from distrain.errors import ModelError
from distrain.launchers.warm_start import find_weights
from distrain.models.registry import build_model
from distrain.runs.directory import RunDirectory
from distrain.training.stored_weights import read_stored
from tests.checkpoint.factories import damage
from tests.cli_runner import distrain, fit, status

SMALL = ["--device=cpu", "--set=data.train_samples=128", "--set=data.batch_size=64", "--set=eval.batch_size=256"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs/first is, with checkpoints of steps 1 to 4 and moving averages, and a bundle of it."""
    place = tmp_path_factory.mktemp("warm")
    options = ["--set=train.epochs=2", "--set=checkpoint.every_steps=1", "--set=checkpoint.keep_last=9"]
    fit("digits", "--run=runs/first", *SMALL, *options, "--set=train.ema_decay=0.5", cwd=place)
    assert distrain("export", "first", "--out=bundle", cwd=place).code == 0
    return place


@pytest.fixture
def here(folder: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def load(reference: str, **options: str) -> dict[str, torch.Tensor]:
    """Return the weights of a network that starts from what a reference names."""
    config = Model(name="digits-cnn", weights=find_weights(reference, Path("runs")), **options)
    return build_model(config, num_classes=10, in_channels=1, stored=read_stored(config)).state_dict()


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def step(number: int) -> Path:
    return Path(f"runs/first/checkpoints/step-{number:08d}")


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        ("first 3", 3),
        ("runs/first last", 4),
        ("fir last", 4),
        ("last last", 4),
        ("runs/first/checkpoints/step-00000001", 1),
        ("first/checkpoints/step-2", 2),
        ("first/last", 4),
        ("runs/first/last", 4),
    ],
)
def test_checkpoint_of_a_run_is_where_another_training_starts(here: Path, reference: str, number: int) -> None:
    assert_same(load(reference), read_model(step(number)))


@pytest.mark.parametrize("reference", ["first", "runs/first", "last", "first best", "first/best", "bundle"])
def test_run_alone_and_a_bundle_are_the_best_checkpoint(here: Path, reference: str) -> None:
    assert_same(load(reference), load_file("bundle/model.safetensors"))


def test_moving_average_of_a_checkpoint_is_loaded_unless_the_trained_weights_are_chosen(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "distrain")
    trained = load("first last", weights_entry="model")
    assert_same(trained, read_model(step(4), use_average=False))
    assert not torch.equal(trained["fc.weight"], load("first last")["fc.weight"])
    assert "of the moving average and the weights as trained, it is the weights as trained" in caplog.text
    assert "it is the moving average" in caplog.text
    with pytest.raises(ModelError, match=r"has no weights 'ema' \(model.weights_entry\); it holds model, average$"):
        load("first last", weights_entry="ema")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("second", "there is no such file, checkpoint, bundle or run$"),
        ("imagnet", r"there is no such file, checkpoint, bundle or run; did you mean imagenet\?$"),
        ("first 9", "there is no checkpoint '9'"),
        ("runs/first/checkpoints/step-00000009", "there is no checkpoint runs/first"),
        ("runs", "there is no such file"),
    ],
)
def test_what_is_not_there_is_one_sentence(here: Path, reference: str, words: str) -> None:
    with pytest.raises(ModelError, match=rf"^model\.weights={reference}: .*{words}") as caught:
        load(reference)
    assert "\n" not in str(caught.value)


def test_damaged_checkpoint_and_bundle_are_not_loaded(here: Path, tmp_path: Path) -> None:
    for source, file, words in (
        (step(1), "state.json", "is not used: "),
        (step(1), "MANIFEST.json", "is not used: "),
        (Path("bundle"), "model.safetensors", "does not match the digest"),
    ):
        copied = tmp_path / file / source.name
        copied.mkdir(parents=True)
        for part in source.iterdir():
            (copied / part.name).write_bytes(part.read_bytes())
        damage(copied / file, "missing" if file == "MANIFEST.json" else "flipped")
        with pytest.raises(ModelError, match=words):
            load(str(copied))


def test_run_that_weights_are_from_is_pinned_and_resumes_with_the_same_command(folder: Path) -> None:
    asked = ["digits", "--run=runs/warm", *SMALL, "--set=train.epochs=1", "--set=model.weights=last"]
    done = fit(*asked, cwd=folder)
    pinned = read_recipe(RunDirectory(folder / "runs/warm").recipe).model.weights
    assert pinned is not None
    assert Path(pinned).parent == folder / "runs/first/checkpoints"
    assert f"model.weights={pinned} (the best and newest of its run): loaded 20 of the model's 20 tensors" in done.out
    assert "has already finished" in fit(*asked, cwd=folder).out  # `last` is not the run itself
    resumed = distrain("resume", "warm", cwd=folder).out.splitlines()[0]
    told = re.fullmatch(
        r"this run has already finished; .* further, and `(.*)` starts another run from its weights", resumed
    )
    assert told is not None
    _, _, *words = shlex.split(told[1].replace("=N", "=2"))
    longer = fit(*words, "--run=runs/longer", cwd=folder)
    assert "loaded 20 of the model's 20 tensors" in longer.out
    assert status(folder / "runs/longer")["total_steps"] == 4
    refused = fit("--run=runs/warm", "--set=train.seed=2", cwd=folder, code=2).err
    warm = folder / "runs/warm"
    assert (
        f"start another run from its weights by `distrain fit {warm}/recipe.yaml --set model.weights={warm} " in refused
    )
    missing = fit("digits", "--run=runs/other", *SMALL, "--set=model.weights=nowhere", cwd=folder, code=2)
    assert "model.weights=nowhere: there is no such file, checkpoint, bundle or run" in missing.err
    assert not (folder / "runs/other").exists()


def test_weights_of_another_network_are_refused_by_the_name_of_it(folder: Path) -> None:
    asked = ["digits", "--run=runs/other", *SMALL, "--set=model={name: lenet, weights: first}"]
    refused = fit(
        *asked, *(f"--set=augment.{split}=[Pad: {{padding: 12}}]" for split in ("train", "eval")), cwd=folder, code=2
    ).err
    assert " of digits-cnn does not fit the model: " in refused
    assert not (folder / "runs/other").exists()


def test_run_killed_before_its_first_checkpoint_does_not_start_again_from_other_weights(folder: Path) -> None:
    shutil.copytree(folder / "bundle", folder / "changing")
    asked = ["digits", "--run=runs/early", *SMALL, "--set=model.weights=changing", "--set=train.max_steps=1"]
    fit(*asked, cwd=folder)
    early = RunDirectory(folder / "runs/early")
    early.write_status(early.read_status().model_copy(update={"state": "failed"}))
    shutil.rmtree(early.checkpoints)
    fit(*asked, cwd=folder)
    early.write_status(early.read_status().model_copy(update={"state": "failed"}))
    shutil.rmtree(early.checkpoints)
    damage(folder / "changing/model.safetensors", "flipped")
    refused = fit(*asked, cwd=folder, code=2).err
    assert "model.weights=changing has changed since run" in refused


def test_head_of_other_classes_is_loaded_and_told_in_a_line(folder: Path, tmp_path: Path) -> None:
    images, labels = np.zeros((12, 1, 8, 8), np.uint8), np.arange(12) % 10
    arrays: dict[str, Any] = {
        f"{split}_{name}": of for split in ("train", "val") for name, of in (("images", images), ("labels", labels))
    }
    for first, words in (
        ("1", "the same classes in another order: output 0 was '0' and is '1' here; its head is loaded as it is"),
        ("zero", "other classes: output 0 was '0' and is 'zero' here; its head is loaded as it is"),
    ):
        names = [first, *(str(number) for number in range(10) if str(number) != first)][:10]
        np.savez(tmp_path / "data.npz", classes=np.array(names), **arrays)
        for weights in ("first", "bundle"):
            options = ["--set=data.source=tensors", f"--data={tmp_path}/data.npz", f"--set=model.weights={weights}"]
            done = fit("digits", f"--run={tmp_path}/{first}-{weights}", *options, "--set=train.max_steps=1", cwd=folder)
            lines = [line for line in (done.out + done.err).splitlines() if "was trained on" in line]
            assert len(lines) == 1
            assert lines[0].endswith(f" was trained on {words}")
