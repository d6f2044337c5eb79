"""What a run finds out while it trains: that its time is up, and how large its micro-batch may be."""

import shutil
from pathlib import Path

import pytest

from tests.cli_runner import checkpoint_steps, distrain, fit, metrics, status


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
    assert "schedule.name=onecycle was planned for all of these steps" in done.out


@pytest.mark.slow
def test_micro_batch_is_found_once_and_the_global_batch_stays(tmp_path: Path) -> None:
    arguments = ["digits", "--set=train={epochs: 1, max_steps: 4, micro_batch_size: auto}", "--run=run"]
    done = fit(*arguments, "--procs=2", cwd=tmp_path)
    assert "global batch 64, with a micro-batch size found when training starts" in done.out
    assert "global batch 64 = micro-batch 32 x accumulation 1 x 2 processes" in done.out
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # as if it had been killed before it wrote one
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "status.json").unlink()
    again = fit(*arguments, "--procs=2", cwd=tmp_path)
    assert "global batch 64 = micro-batch 32 x accumulation 1 x 2 processes" in again.out
    assert "MiB may be used" in done.out
    assert "MiB may be used" not in again.out


def test_statistics_over_all_gpus_are_refused_on_the_cpu(tmp_path: Path) -> None:
    done = distrain("fit", "digits", "--set=parallel.sync_batchnorm=true", "--run=run", cwd=tmp_path)
    assert done.code == 2
    assert "train.exact=true" in done.err
    assert len(done.err.strip().splitlines()) == 1
