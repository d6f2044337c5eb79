"""A run may end before its planned steps, and a resume knows at which one, and that it has."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Status
from distrain.training import trainer
from distrain.training.monitor import RankMonitor
from tests.cli_runner import checkpoint_steps, comparable

# A learning rate that changes nothing but BatchNorm's statistics: evaluations soon get no better. 4 steps an epoch.
STALE = [
    "optimizer={lr: 1.0e-12}",
    "data={source: digits, batch_size: 64, train_samples: 256, val_samples: 64}",
    "checkpoint={every_steps: 3, keep_last: 50}",
    "log={tensorboard: false, wandb: disabled}",
]


def train(path: Path, *overrides: str) -> tuple[Status, list[dict[str, Any]]]:
    run = RunDirectory(path)
    if not run.checkpoints.exists():
        run.create()
    recipe = load_recipe("digits", overrides=[*STALE, *overrides])
    profile = Profile(launcher="inprocess", device="cpu", processes=1, threads=torch.get_num_threads())
    with RankMonitor(run, rank=0) as monitor:
        assert trainer.train(recipe, profile, run, World(0, 1, 0, torch.device("cpu")), monitor)
    return run.read_status(), comparable(path)


def kill_after(path: Path, step: int) -> None:
    """Leave the run as if it had been killed right after the checkpoint of `step`."""
    for late in (folder for folder in (path / "checkpoints").glob("step-*") if int(folder.name[5:]) > step):
        shutil.rmtree(late)
    (path / "status.json").unlink()


def test_run_without_progress_ends_and_a_resume_ends_it_at_the_same_step(tmp_path: Path) -> None:
    ended, lines = train(tmp_path, "train={epochs: 50, patience: 3}")
    assert ended.best is not None
    assert ended.state == "finished"
    assert ended.step == ended.total_steps == ended.best["step"] + 3 * 4
    assert {"train/loss", "val/top1"} <= lines[-1].keys()
    assert checkpoint_steps(tmp_path)[-1] == ended.step
    for step in (checkpoint_steps(tmp_path)[-3], ended.step):  # between the last evaluations, and at the very end
        kill_after(tmp_path, step)
        again, same = train(tmp_path, "train={epochs: 50, patience: 3}")
        assert (again.attempts[0].first_step, again.step, again.total_steps) == (step, ended.step, ended.step)
        assert again.state_digest == ended.state_digest
        assert same == lines


def test_target_that_was_reached_stays_reached_after_a_resume_at_the_end(tmp_path: Path) -> None:
    ended, _ = train(tmp_path, "train={epochs: 50, target_loss: 100}")
    assert ended.step == 4
    kill_after(tmp_path, 4)
    again, _ = train(tmp_path, "train={epochs: 50, target_loss: 100}")
    assert (again.step, again.state, again.state_digest) == (4, "finished", ended.state_digest)


def test_run_that_reaches_its_target_after_a_resume_ends_at_the_step_of_the_unbroken_run(tmp_path: Path) -> None:
    target = "train={epochs: 50, target_loss: 2.0}"
    ended, lines = train(tmp_path, target, "optimizer.lr=0.05", "log.every_steps=1")
    assert 5 < ended.step < 50 * 4
    kill_after(tmp_path, (ended.step - 1) // 3 * 3)  # less than an epoch before the end
    again, same = train(tmp_path, target, "optimizer.lr=0.05", "log.every_steps=1")
    assert (again.step, again.state_digest) == (ended.step, ended.state_digest)
    assert same == lines


def test_time_of_earlier_attempts_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distrain")
    run = RunDirectory(tmp_path)
    run.create()
    run.write_status(Status(train_seconds=3000))
    ended, lines = train(tmp_path, "train={epochs: 50, max_time: 45m}")
    assert (ended.step, ended.total_steps, ended.state) == (1, 1, "finished")
    assert "the time limit of 45 min 0 s (train.max_time) is reached at step 1 of 200" in caplog.text
    assert {"train/loss", "val/top1"} <= lines[-1].keys()
