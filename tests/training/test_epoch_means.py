"""An epoch is told by its own means: over all its samples, however rarely records are made, and across a resume."""

import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.runs import checkpoints
from distrain.runs.directory import RunDirectory
from distrain.training import trainer
from distrain.training.monitor import RankMonitor
from tests.cli_runner import metrics
from tests.training.test_early_stopping import kill_after

# 4 steps an epoch, of 64, 64, 64 and 8 samples.
SHORT = [
    "data={source: digits, batch_size: 64, train_samples: 200, val_samples: 64}",
    "train={epochs: 3}",
    "eval={batch_size: 16}",
    "checkpoint={every_steps: 3, keep_last: 50}",
    "log.tensorboard=false",
    "log.wandb=disabled",
]
SAMPLES = [64, 64, 64, 8]


@pytest.fixture
def told() -> Iterator[list[str]]:
    """The lines that are logged."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("distrain.training.loggers.console"), Keep()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def train(path: Path, *overrides: str) -> RankMonitor:
    run = RunDirectory(path)
    if not run.checkpoints.exists():
        run.create()
    recipe = load_recipe("digits", overrides=[*SHORT, *overrides])
    profile = Profile(launcher="inprocess", device="cpu", processes=1, threads=torch.get_num_threads())
    with RankMonitor(run, rank=0) as monitor:
        assert trainer.train(recipe, profile, run, World(0, 1, 0, torch.device("cpu")), monitor)
    return monitor


def losses(lines: list[str]) -> list[str]:
    return [match[1] for line in lines if (match := re.search(r"epoch \d/3  step \d+/12  loss ([\d.]+)  val", line))]


def test_line_of_an_epoch_has_the_mean_over_its_samples_also_across_a_resume(tmp_path: Path, told: list[str]) -> None:
    train(tmp_path / "steps", "log.every_steps=1")
    of_steps = [record["train/loss"] for record in metrics(tmp_path / "steps") if "train/loss" in record]
    means = [
        math.fsum(loss * n for loss, n in zip(of_steps[start : start + 4], SAMPLES, strict=True)) / 200
        for start in (0, 4, 8)
    ]
    expected = [f"{mean:.4f}" for mean in means]
    assert losses(told) == expected
    told.clear()
    train(tmp_path / "rare", "log.every_steps=50")
    assert losses(told) == expected
    assert all(line.endswith(" samples/s") for line in told)
    told.clear()
    kill_after(tmp_path / "rare", 6)  # in the middle of the second epoch
    train(tmp_path / "rare", "log.every_steps=50")
    assert losses(told) == expected[1:]


def test_checkpoint_without_the_losses_of_its_epoch_still_resumes(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of earlier versions are."""
    train(tmp_path, "log.every_steps=50")
    kill_after(tmp_path, 6)
    told.clear()
    found, _ = checkpoints.latest_valid(RunDirectory(tmp_path).checkpoints)
    assert found is not None
    del found.state["epoch_loss"]
    monkeypatch.setattr("distrain.training.trainer.find_checkpoint", lambda *_: found)
    train(tmp_path, "log.every_steps=50")
    assert len(losses(told)) == 2


def test_status_tells_the_epochs_that_are_finished_and_whole_steps(tmp_path: Path) -> None:
    state = train(tmp_path, "train.max_steps=7", "log.every_steps=50").state
    assert (state.phase, state.evaluated, state.to_evaluate) == ("close", 4, 4)
    status = RunDirectory(tmp_path).read_status()
    assert status.epoch == 1.75
    assert status.last is not None
    assert status.best is not None
    text = (tmp_path / "status.json").read_text()
    assert not re.search(r'"(step|first_step|last_step|total_steps)": \d+\.', text)
    RunDirectory(tmp_path).write_status(status)  # as whoever has read it does
    assert (tmp_path / "status.json").read_text() == text
