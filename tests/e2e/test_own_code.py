"""A mistake in the user's code is bad input before the first step of training, and a failure afterwards."""

import re
from pathlib import Path

import pytest

from tests.cli_runner import QUIET, Done, checkpoint_steps, distrain, status

MINE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.layer = nn.Linear(64, num_classes)
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        WHAT
        return self.layer(images.flatten(1))

def too_wide(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(65, num_classes))

def net(num_classes, **arguments):
    return Net(num_classes, **arguments)

class Images:
    classes = ["a", "b"]
    def __len__(self):
        return 40
    def __getitem__(self, index):
        if index == 7:
            raise LookupError("no picture")
        return torch.zeros(1, 8, 8, dtype=torch.uint8), index % 2

def images(split, path, side=8):
    return Images()

def transform():
    def apply(image):
        raise ZeroDivisionError("the transform divides")
    return apply

def detached(logits, targets):
    return torch.nn.functional.cross_entropy(logits, targets).detach()

def late_vector(logits, targets):
    reduction = "none" if len(targets) > 9 else "mean"
    return torch.nn.functional.cross_entropy(logits, targets, reduction=reduction)

class Unnamed(Images):
    classes = None
    target = "values"

def unnamed(split, path):
    return Unnamed()

def no_image():
    def apply(image):
        image.flip(2)
    return apply

def loss(logits, targets):
    return torch.nn.functional.cross_entropy(logits, targets.missing)
"""
NET = ["--set=model.name=mine:net"]


def fit_own(folder: Path, *options: str, what: str = "pass") -> Done:
    (folder / "mine.py").write_text(MINE.replace("WHAT", what))
    return distrain("fit", "--set=train.epochs=2", *options, "--run=run", *QUIET, cwd=folder)


def assert_bad_input(done: Done, folder: Path, *words: str) -> None:
    assert done.code == 2, done.out + done.err
    assert "Traceback" not in done.out + done.err
    assert done.err.startswith("distrain: ")
    assert done.err.count("\n") == 1
    assert all(word in done.err for word in words), done.err
    assert "resume with" not in done.out
    assert "restart" not in done.out
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("options", "what", "words"),
    [
        (
            [*NET],
            "self.training and self.layer.nothing",
            ["mine.py:13, in forward", "AttributeError before the first step"],
        ),
        (["--procs=2", *NET], "len(images) > 9 and images.view(3)", ["mine.py:13, in forward", "RuntimeError"]),
        *[
            (
                [*options, "--set=model.name=mine:too_wide"],
                "pass",
                ["model.name=mine:too_wide does not accept images of 1x8x8 pixels (mat1 and mat2", "or change the net"],
            )
            for options in (
                [],
                ["--procs=2"],
                ["--set=train.micro_batch_size=auto"],
                ["--set=optimizer.layer_decay=0.9"],
            )
        ],
        (["--set=model.arguments={widht: 3}", *NET], "pass", ["mine.py:20, in net", "widht"]),
        (["--set=loss={name: 'mine:loss'}"], "pass", ["mine.py:", "in loss", "missing"]),
        (
            ["--procs=2", *NET],
            "if self.training and len(images) > 9: return None",
            ["model.name=mine:net gives None in training at ", "mine.py:11, in forward", "[samples, 10]"],
        ),
        (
            ["--set=loss={name: 'mine:detached'}"],
            "pass",
            ["loss.name=mine:detached gives a number without a gradient at ", "mine.py:", "in detached"],
        ),
        (
            ["--set=loss={name: 'mine:late_vector'}"],
            "pass",
            ["loss.name=mine:late_vector gives float32 [64] at ", "in late_vector", "one number"],
        ),
        (
            ["--set=data.source=mine:unnamed", "--set=data.target=values", "--set=loss={name: mse}"],
            "pass",
            ["the dataset has no `classes` at ", "in Unnamed", "a name for each value"],
        ),
        (
            ["--set=data.source=mine:images", "--set=data.target=values", "--set=loss={name: mse}"],
            "pass",
            ['give its dataset `target = "values"`', "with each image float32 [values]"],
        ),
        (
            ["--set=augment.train=['mine:no_image']"],
            "pass",
            ["a transform returns None at ", "mine.py:", "in apply", "augment.train"],
        ),
        (
            ["--procs=2", "--set=loss={name: 'torch.nn:HuberLoss'}"],
            "pass",
            ["torch.nn:HuberLoss does not accept logits float32 [2, 10] and targets int64 [2]", "cross_entropy"],
        ),
        (
            ["--procs=2", "--set=loss={name: 'torch.nn:HuberLoss'}", "--set=train.micro_batch_size=auto"],
            "pass",
            ["torch.nn:HuberLoss does not accept logits float32 [2, 10] and targets int64 [2]", "cross_entropy"],
        ),
        (["--set=loss={name: 'torch.nn:LayerNorm'}"], "pass", ["is a class that is called without arguments"]),
        (
            ["--set=data.source=mine:images", "--set=data.arguments={sied: 3}"],
            "pass",
            ["data.source=mine:images with split, path and data.arguments: ", "'sied'"],
        ),
        (
            ["--procs=2", "--set=data.source=mine:images", "--set=data.num_workers=1"],
            "pass",
            ["mine.py:", "in __getitem__", "LookupError", "no picture"],
        ),
        (
            ["--set=augment.train=['mine:transform']"],
            "pass",
            ["in apply", "ZeroDivisionError", "the transform divides"],
        ),
        (
            ["--set=augment.train=[Normalize: {mean: [0.5], std: [0.5]}]"],
            "pass",
            ["cannot be transformed", "float tensor", "augment.train"],
        ),
    ],
)
def test_mistake_before_the_first_step_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, options: list[str], what: str, words: list[str]
) -> None:
    assert_bad_input(fit_own(tmp_path, *options, what=what), tmp_path, *words)


def test_traceback_of_a_mistake_is_there_for_the_asking(tmp_path: Path) -> None:
    done = fit_own(tmp_path, *NET, "--verbose", what="images.view(3)")
    assert done.code == 2
    assert "Traceback" in done.out
    assert "mine.py" in done.out
    assert not (tmp_path / "run").exists()


def test_mistake_after_steps_were_trained_is_a_failure_that_can_be_resumed(tmp_path: Path) -> None:
    done = fit_own(tmp_path, *NET, what="self.training and self.calls > 20 and images.view(3)")
    assert done.code == 1
    failed, _, checkpoint, resume = done.out.splitlines()[-4:]
    assert re.fullmatch(
        r"failed at step \d+ on rank 0 \(\S+\): RuntimeError: shape .*, at \S+mine.py:13, in forward", failed
    )
    assert checkpoint.startswith("checkpoint    none yet")
    assert resume.startswith("resume with   distrain resume ")
    assert status(tmp_path / "run")["state"] == "failed"
    assert status(tmp_path / "run")["step"] > 0


def test_mistake_that_an_evaluation_shows_is_bad_input_and_leaves_the_trained_steps(tmp_path: Path) -> None:
    done = fit_own(tmp_path, *NET, what="if not self.training and len(images) > 9: return {}")
    assert done.code == 2, done.out + done.err
    assert all(word in done.err for word in ("the network gives a dict at ", "mine.py:11, in forward", "[samples, 10]"))
    assert checkpoint_steps(tmp_path / "run") == [23]
