"""Jobs that SLURM's controller has forgotten: sacct still knows them, where a cluster has it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from distrain.runs.slurm import JobInfo, read_jobs
from tests.cli_runner import QUIET, distrain, wait_until
from tests.slurm.cluster import Cluster, missing


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A separate cluster, with a database, whose controller forgets a job within a minute of its end."""
    if (reason := missing(accounting=True)) is not None:
        pytest.skip(reason)
    made = Cluster(tmp_path / "cluster", accounting=True)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_forgotten_jobs_are_looked_up_with_sacct(cluster: Cluster, tmp_path: Path) -> None:
    options = ["digits", *QUIET, "--set=train.max_steps=3"]
    finished = distrain("submit", *options, "--run=finished", cwd=tmp_path).out.split()[2]
    held = distrain("submit", *options, "--sbatch=hold", "--run=cancelled", cwd=tmp_path).out.split()[2]
    cluster.call("scancel", held)
    queue = ["squeue", "--noheader", "--states=all", "--format=%i"]
    wait_until(lambda: not cluster.call(*queue), "the controller forgets", timeout_s=240, every_s=2)
    assert read_jobs([finished, held]) == {finished: JobInfo("COMPLETED"), held: JobInfo("CANCELLED")}
    runs = {name: distrain("runs", "show", name, "--json", cwd=tmp_path).out for name in ("finished", "cancelled")}
    assert {name: json.loads(out)["state"] for name, out in runs.items()} == {
        "finished": "finished",
        "cancelled": "cancelled",
    }
