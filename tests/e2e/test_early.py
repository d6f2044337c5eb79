"""A run may end before its planned steps, and a resume knows when, and that it has."""

import subprocess
from pathlib import Path

import pytest

from tests.command import checkpoint_steps, comparable, distrain, fit, metrics, status

# A learning rate that changes nothing: no evaluation is better than the first.
STALE = [
    "digits",
    "--set=train={epochs: 50, patience: 3}",
    "--set=optimizer={lr: 1.0e-12}",
    "--set=data={source: digits, batch_size: 64, train_samples: 256, val_samples: 64}",  # 4 steps an epoch
    "--set=checkpoint.every_steps=3",
    "--set=checkpoint.keep_last=50",
    "--set=checkpoint.asynchronous=false",
]


def kill_after(run: Path, step: int) -> None:
    """Leave the run as if it had been killed right after the checkpoint of `step`."""
    for late in (path for path in (run / "checkpoints").glob("step-*") if int(path.name[5:]) > step):
        subprocess.run(["rm", "-r", str(late)], check=True)
    (run / "status.json").unlink()


def test_run_without_progress_ends_and_a_resume_ends_it_at_the_same_step(tmp_path: Path) -> None:
    done = fit(*STALE, "--run=run", cwd=tmp_path)
    run = tmp_path / "run"
    ended, lines = status(run), comparable(run)
    assert ended["state"] == "finished"
    assert ended["step"] == ended["total_steps"] == int(ended["best"]["step"]) + 3 * 4
    assert "train.patience=3: no evaluation since step" in done.out
    assert {"train/loss", "val/top1"} <= metrics(run)[-1].keys()
    assert checkpoint_steps(run)[-1] == ended["step"]
    for step in (checkpoint_steps(run)[-3], ended["step"]):  # between the last evaluations, and at the very end
        kill_after(run, step)
        fit(*STALE, "--run=run", cwd=tmp_path)
        again = status(run)
        assert (again["step"], again["state"], again["attempts"][0]["first_step"]) == (ended["step"], "finished", step)
        assert again["weights_digest"] == ended["weights_digest"]
        assert comparable(run) == lines


@pytest.mark.slow
def test_run_whose_time_is_up_evaluates_saves_and_finishes(tmp_path: Path) -> None:
    arguments = ["digits", "--set=train={epochs: 5000, max_time: 5s}", "--set=log.every_steps=1000000"]
    done = fit(*arguments, "--set=eval.every_epochs=null", "--procs=2", "--run=run", cwd=tmp_path)
    run = tmp_path / "run"
    found = status(run)
    assert found["state"] == "finished"
    assert found["train_seconds"] >= 5
    assert 0 < found["step"] == found["total_steps"] < 5000 * 23
    assert {"train/loss", "val/top1"} <= metrics(run)[-1].keys()
    assert checkpoint_steps(run)[-1] == found["step"]
    assert "schedule.name=onecycle was made for all of these" in done.out


def test_micro_batch_is_found_once_and_the_global_batch_stays(tmp_path: Path) -> None:
    arguments = ["digits", "--set=train={epochs: 1, max_steps: 4, micro_batch_size: auto}", "--run=run"]
    done = fit(*arguments, "--procs=2", cwd=tmp_path)
    assert "global batch 64, its micro-batch size is found when training starts" in done.out
    assert "global batch 64 = micro-batch 32 x accumulation 1 x 2 processes" in done.out
    kill_after(tmp_path / "run", 0)
    again = fit(*arguments, "--procs=2", cwd=tmp_path)
    assert "global batch 64 = micro-batch 32 x accumulation 1 x 2 processes" in again.out
    assert "samples take" in done.out
    assert "samples take" not in again.out


def test_statistics_over_all_gpus_are_refused_on_the_cpu(tmp_path: Path) -> None:
    done = distrain("fit", "digits", "--set=parallel.sync_batchnorm=true", "--run=run", cwd=tmp_path)
    assert done.code == 2
    assert "train.exact=true" in done.err
    assert len(done.err.strip().splitlines()) == 1
