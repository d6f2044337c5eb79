"""`distrain checkpoints average` writes the mean of weights as a run or a file that other commands use."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distrain.checkpoint.load import read_model
from tests.cli.test_bad_input import assert_one_sentence
from tests.cli_runner import Done, distrain, fit, status

STEPS = (23, 46, 69)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of three epochs, and one of other classes."""
    folder = tmp_path_factory.mktemp("trained")
    fit("--set=train.epochs=3", "--set=checkpoint.keep_last=9", "--run=runs/one", cwd=folder)
    return folder


def average(*arguments: str, cwd: Path, code: int = 0) -> Done:
    done = distrain("checkpoints", "average", *arguments, cwd=cwd)
    assert done.code == code, done.out + done.err
    return done


def expected(place: Path) -> dict[str, torch.Tensor]:
    models = [read_model(place / "runs" / "one" / "checkpoints" / f"step-{step:08d}") for step in STEPS]
    return {
        name: torch.stack([model[name].double() for model in models]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else models[-1][name]
        for name, value in models[-1].items()
    }


def test_average_is_a_run_that_eval_and_export_take(place: Path) -> None:
    done = average("one 23", "one 46", "runs/one/checkpoints/step-00000069", "--out=runs/mean", "--json", cwd=place)
    told = json.loads(done.out)
    assert [Path(path).name for path in told["averaged"]] == [f"step-{step:08d}" for step in STEPS]
    tensors, wanted = read_model(Path(place, told["checkpoint"])), expected(place)
    assert tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(tensors[name], value, rtol=1e-6, atol=1e-8, msg=name)
    assert status(place / "runs" / "mean")["state"] == "finished"
    found = json.loads(distrain("eval", "mean", "--device=cpu", "--no-pictures", "--json", cwd=place).out)
    assert found["metrics"]["val/top1"] > 0.9
    assert distrain("export", "mean", cwd=place).code == 0
    done = fit("--set=model.weights=runs/mean", "--set=train.max_steps=2", "--run=runs/next", cwd=place)
    assert "loaded" in done.out


def test_file_of_weights_starts_another_run_and_has_statistics_of_its_own(place: Path) -> None:
    done = average("one 46", "one 69", "--out=mean.safetensors", "--batchnorm-steps=4", cwd=place)
    assert "the mean of 2 checkpoints; --set model.weights=mean.safetensors" in done.out
    tensors = load_file(place / "mean.safetensors")
    models = [read_model(place / "runs" / "one" / "checkpoints" / f"step-{step:08d}") for step in STEPS[1:]]
    name = "features.1.1.running_var"
    mean = (models[0][name] + models[1][name]) / 2
    assert not torch.equal(tensors[name], mean)
    torch.testing.assert_close(tensors[name], mean, rtol=1.0, atol=0.1)
    torch.testing.assert_close(tensors["fc.weight"], (models[0]["fc.weight"] + models[1]["fc.weight"]) / 2)
    done = fit("--set=model.weights=mean.safetensors", "--set=train.max_steps=2", "--run=runs/other", cwd=place)
    assert "loaded" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["one"], ["one is one checkpoint", "two or more"]),
        (["one 23", "one 23"], ["is named twice"]),
        (["one 23", "one 24"], ["there is no checkpoint '24'"]),
        (["one 23", "two"], ["there is no run 'two'"]),
        (["one 23", "one 46", "--out=runs/one"], ["runs/one exists"]),
    ],
)
def test_what_cannot_be_averaged_is_refused(place: Path, arguments: list[str], words: list[str]) -> None:
    assert_one_sentence(average(*arguments, cwd=place, code=2), *words)
