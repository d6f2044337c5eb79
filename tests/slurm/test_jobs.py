"""Runs that SLURM trains, on a real SLURM: to the end, over time limits and preemptions, after failures."""

from pathlib import Path

from tests.command import QUIET, comparable, distrain, fit, status, wait_until
from tests.slurm.cluster import Cluster

SMALL = [*QUIET, "--set=train.threads=1", "--set=train.max_steps=40", "--set=eval.every_epochs=null"]


def submit(*arguments: str, cwd: Path) -> str:
    done = distrain("submit", *arguments, cwd=cwd)
    assert done.code == 0, done.err
    return done.out.split()[2].rstrip(",")


def wait_for_job(cluster: Cluster, job_id: str, state: str, timeout_s: float = 90) -> None:
    wait_until(lambda: cluster.field(job_id, "JobState") == state, f"{state} of job {job_id}", timeout_s)


def said(run: Path) -> str:
    """What the job of a run has printed."""
    return "".join(path.read_text() for path in sorted((run / "logs").glob("slurm-*.out")))


def test_job_on_two_nodes_trains_to_the_end_as_two_processes_here_do(cluster: Cluster, tmp_path: Path) -> None:
    job_id = submit("digits", *SMALL, "--nodes=2", "--run=run", cwd=tmp_path)
    wait_for_job(cluster, job_id, "COMPLETED")
    run = tmp_path / "run"
    assert status(run)["state"] == "finished"
    assert status(run)["attempts"][-1]["world_size"] == 2
    assert (run / "logs" / "rank-1.log").exists()
    fit("digits", *SMALL, "--procs=2", "--run=here", cwd=tmp_path)
    assert status(run)["weights_digest"] == status(tmp_path / "here")["weights_digest"]
    assert comparable(run) == comparable(tmp_path / "here")
