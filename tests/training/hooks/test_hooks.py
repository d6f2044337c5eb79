"""Hooks see what happens; one that raises is disabled, one that is slow is reported, and neither ends the training."""

import doctest
import logging
import re
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from distrain.config.parts import HookPart
from distrain.errors import RecipeError
from distrain.training.hooks import hook as module
from distrain.training.hooks.calls import Hooks, build_hooks
from distrain.training.hooks.hook import EvaluationEnd, Hook, StepEnd, TrainingStart

HERE = "tests.training.hooks.test_hooks"
START = TrainingStart(Path("run"), step=0, total_steps=9, steps_per_epoch=3, world_size=1)


class Seen(Hook):
    """Keeps what it sees."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_step_end(self, event: StepEnd) -> None:
        self.events.append(event)

    def on_evaluation(self, event: EvaluationEnd) -> None:
        self.events.append(event)


class Raises(Hook):
    """Raises at its second step."""

    def on_step_end(self, event: StepEnd) -> None:
        if event.step > 1:
            raise ValueError("no more")


class Exits(Hook):
    """Ends the process, it believes."""

    def on_step_end(self, event: StepEnd) -> None:
        sys.exit(3)


class Slow(Hook):
    """Takes its time."""

    def on_step_end(self, event: StepEnd) -> None:
        time.sleep(0.1)


class Misspelt(Hook):
    """Has a method that nobody calls."""

    def on_step_ends(self, event: StepEnd) -> None:
        pass


class Refusing(Hook):
    """Cannot be made."""

    def __init__(self) -> None:
        raise OSError("no connection")


def make(*names: str) -> Hooks:
    made = build_hooks([HookPart(name=f"{HERE}:{name}") for name in names], is_new=True)
    assert made is not None
    return made


def test_hook_that_raises_is_reported_once_and_disabled(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    hooks = Hooks([("mine:Raises", Raises()), ("mine:Seen", seen)])
    for step in (1, 2, 3):
        hooks.step_end(step, epoch=step / 3, lr=0.1)
    assert [event.step for event in seen.events] == [1, 2, 3]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "hook mine:Raises has raised in on_step_end and is disabled (ValueError: no more, at " in warning
    assert "test_hooks.py" in warning


def test_hook_cannot_end_the_training(caplog: pytest.LogCaptureFixture) -> None:
    hooks = make("Exits")
    for step in (1, 2):
        hooks.step_end(step, epoch=0.0, lr=0.1)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "is disabled (SystemExit: 3, at " in warning


def test_public_class_needs_no_torch() -> None:
    program = "import sys, distrain.training.hooks.hook; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_slow_hook_is_reported_once_with_its_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hooks = make("Slow", "Seen")
    hooks.start(START, checkpoints=tmp_path)
    for step in range(6):
        hooks.step_end(step, epoch=0.0, lr=0.1)
    hooks.boundary(tmp_path, steps_s=10.0)
    assert not caplog.records
    hooks.start(START, checkpoints=tmp_path)
    for step in range(6):
        hooks.step_end(step, epoch=0.0, lr=0.1)
    for _ in range(2):
        hooks.boundary(tmp_path, steps_s=1.0)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert re.search(rf"hook {HERE}:Slow is slow: 0\.\d s so far, \d\d% of the time of the steps", warning)


def test_what_hooks_see_is_read_only() -> None:
    seen = Seen()
    metrics = {"val/top1": 0.5}
    Hooks([("mine:Seen", seen)]).evaluation(3, epoch=1.0, metrics=metrics, is_best=True)
    (event,) = seen.events
    metrics["val/top1"] = 0.0
    assert event.metrics == {"val/top1": 0.5}
    with pytest.raises(TypeError):
        event.metrics["val/top1"] = 1.0
    with pytest.raises(FrozenInstanceError):
        event.step = 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Misspelt", ["has a method on_step_ends", "did you mean on_step_end?"]),
        ("START", ["is TrainingStart(", "name a function or a class"]),
        ("Path", ["makes PosixPath('.')", "subclass of distrain.Hook"]),
        ("Sean", ["has no 'Sean'", "Seen"]),
    ],
)
def test_what_is_no_hook_is_refused(name: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        make(name)
    assert all(word in str(caught.value) for word in words), caught.value


def test_hook_that_cannot_be_made_ends_a_start_and_not_a_resume(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="no connection"):
        make("Refusing")
    parts = [HookPart(name=f"{HERE}:{name}") for name in ("Refusing", "Seen")]
    assert build_hooks(parts, is_new=False) is not None
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"hook {HERE}:Refusing could not be made and is disabled (OSError: no connection)" in warning


def test_hook_may_be_an_object_instead_of_a_class() -> None:
    make("GIVEN").step_end(1, epoch=0.1, lr=0.1)
    assert [event.step for event in GIVEN.events] == [1]


GIVEN = Seen()


def test_example_of_the_docstring_runs() -> None:
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0
