"""Sweeps whose trials SLURM trains, on a real SLURM."""

import json
from pathlib import Path

import pytest

from tests.cli_runner import QUIET, distrain, status
from tests.slurm.cluster import Cluster

TINY = [*QUIET, "--no-snapshot", "--set=data.batch_size=512", "--set=train.threads=1", "--queue=slurm"]


@pytest.mark.slow
def test_trials_pause_and_resume_as_jobs(cluster: Cluster, tmp_path: Path) -> None:
    options = ["--param=optimizer.lr=log(1e-3, 1)", "--set=train.epochs=2", "--prune=asha", "--trials=3"]
    done = distrain("sweep", "digits", *TINY, *options, "--parallel=2", "--procs=1", "--name=s", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    trials = json.loads(done.out)["trials"]
    assert sorted(trial["state"] for trial in trials) == ["finished", "pruned", "pruned"], done.err
    best = next(trial for trial in trials if trial["state"] == "finished")
    attempts = status(tmp_path / "runs" / best["run"])["attempts"]
    assert [attempt["state"] for attempt in attempts] == ["stopped", "finished"]
    assert attempts[0]["last_step"] == attempts[1]["first_step"] > 0
