"""Runs that SLURM trains, on a real SLURM: to the end, over time limits and preemptions, after failures."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli_runner import (
    QUIET,
    checkpoint_steps,
    comparable,
    distrain,
    fit,
    heartbeat,
    status,
    wait_for_step,
    wait_until,
)
from tests.e2e.test_events import events, settings
from tests.slurm.cluster import GPUS, Cluster

# A step takes as long as a test likes: until the file `fast` stands in the folder that the run was submitted from.
SLOW_NET = """
import time
from pathlib import Path
from torch import nn
class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, num_classes))
    def forward(self, images):
        if self.training and not Path("fast").exists():
            time.sleep(0.25)
        return super().forward(images)
"""
STEPS = 300
TRAINING = [
    "digits",
    *QUIET,
    "--set=model.name=nets:Net",
    "--set=train.threads=1",
    f"--set=train.max_steps={STEPS}",
    "--set=checkpoint.every_epochs=null",
    "--set=eval.every_epochs=null",
    "--set=log.every_steps=7",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that a test submits from."""
    (tmp_path / "nets.py").write_text(SLOW_NET)
    return tmp_path


@pytest.fixture(scope="session")
def undisturbed(running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes here, which nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "nets.py").write_text(SLOW_NET)
    (folder / "fast").touch()
    fit(*TRAINING, "--procs=2", "--run=run", cwd=folder)
    return folder / "run"


def submit(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = distrain("submit", *arguments, cwd=cwd, env=env)
    assert done.code == 0, done.err
    return done.out.split()[2].rstrip(",")


def wait_for_job(cluster: Cluster, job_id: str, state: str, timeout_s: float = 120) -> None:
    what = f"{state} of job {job_id}"
    wait_until(lambda: cluster.field(job_id, "JobState") == state, what, timeout_s, every_s=0.5)


def wait_for_restart(cluster: Cluster, job_id: str, number: int, timeout_s: float = 120) -> None:
    what = f"restart {number} of job {job_id}"
    wait_until(lambda: cluster.field(job_id, "Restarts") == str(number), what, timeout_s, every_s=0.5)


def minutes_run(cluster: Cluster, job_id: str) -> int:
    hours, minutes, _ = cluster.field(job_id, "RunTime").split(":")
    return int(hours) * 60 + int(minutes)


def said(run: Path) -> str:
    """What the job of a run has printed."""
    return "".join(path.read_text() for path in sorted((run / "logs").glob("slurm-*.out")))


def state(run: Path) -> str:
    """The state in which `distrain runs` shows a run."""
    facts: dict[str, Any] = json.loads(distrain("runs", "show", str(run), "--json", cwd=run.parent).out)
    return str(facts["state"])


def assert_same(run: Path, other: Path) -> None:
    assert status(run)["state"] == "finished", said(run)
    assert status(run)["weights_digest"] == status(other)["weights_digest"]
    assert status(run)["state_digest"] == status(other)["state_digest"]
    assert comparable(run) == comparable(other)


def test_job_on_two_nodes_trains_to_the_end_as_two_processes_here_do(
    cluster: Cluster, folder: Path, undisturbed: Path
) -> None:
    (folder / "fast").touch()
    job_id = submit(*TRAINING, "--nodes=2", "--run=run", cwd=folder)
    run = folder / "run"
    wait_for_job(cluster, job_id, "COMPLETED")
    assert_same(run, undisturbed)
    assert (run / "logs" / "rank-1.log").exists()
    assert (run / "code" / "nets.py").read_text() == SLOW_NET
    assert state(run) == "finished"
    assert "starts at step 0" in distrain("logs", "run", "-f", cwd=folder).out
    again = distrain("resume", "run", cwd=folder)
    assert again.code == 0
    assert "finished" in again.out


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_run_resumes_after_the_time_limit_and_ends_undisturbed(
    cluster: Cluster, folder: Path, undisturbed: Path
) -> None:
    offline = "--set=log.wandb=offline"
    env = settings(folder)
    job_id = submit(*TRAINING, offline, "--nodes=2", "--run=run", "--time=30", cwd=folder, env=env)
    run = folder / "run"
    wait_for_step(run, 5)
    # SLURM counts whole minutes, and gives notice 120 s before: at once.
    cluster.call("scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes_run(cluster, job_id) + 2}")
    wait_for_restart(cluster, job_id, 1)
    assert status(run)["state"] == "preempted"
    wait_until(lambda: state(run) == "requeued", "the queue", every_s=0.5)
    step = status(run)["step"]
    assert checkpoint_steps(run) == [step]
    assert step > 0
    (folder / "nets.py").unlink()  # what was submitted is what runs
    cluster.call("scontrol", "update", f"JobId={job_id}", "TimeLimit=30")
    cluster.hurry(job_id)
    (folder / "fast").touch()
    wait_for_job(cluster, job_id, "COMPLETED")
    assert_same(run, undisturbed)
    assert f"job {job_id} is requeued, and will resume from step {step}" in said(run)
    assert f"at step {step} of {STEPS}" in (run / "logs" / "rank-0.log").read_text()  # appended
    assert [attempt["state"] for attempt in status(run)["attempts"]] == ["preempted", "finished"]
    wandb_runs = [path.stem.removeprefix("run-") for path in (run / "wandb").glob("offline-run-*/run-*.wandb")]
    assert wandb_runs == [(run / "wandb" / "run-id").read_text()] * 2
    assert [event["event"] for event in events(folder)] == ["started", "preempted", "started", "finished"]
    assert events(folder)[2]["message"] == f"resumes at step {step}"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_run_that_is_preempted_twice_ends_undisturbed(cluster: Cluster, folder: Path, undisturbed: Path) -> None:
    job_id = submit(*TRAINING, "--nodes=2", "--run=run", cwd=folder)
    run, step = folder / "run", 0
    for number in (1, 2):
        wait_for_step(run, step + 5)
        options = ["--nodes=3", "--exclusive", "--partition=urgent", "--output=/dev/null", "--wrap=sleep 1"]
        urgent_id = cluster.call("sbatch", "--parsable", *options)
        wait_for_restart(cluster, job_id, number)
        wait_until(lambda: status(run)["state"] == "preempted", "the save")
        assert status(run)["step"] > step
        step = status(run)["step"]
        wait_for_job(cluster, urgent_id, "COMPLETED")
        cluster.hurry(job_id)
    (folder / "fast").touch()
    wait_for_job(cluster, job_id, "COMPLETED")
    assert_same(run, undisturbed)
    assert [attempt["state"] for attempt in status(run)["attempts"]] == ["preempted", "preempted", "finished"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_cancelled_job_saves_is_not_requeued_and_can_be_resumed(
    cluster: Cluster, folder: Path, undisturbed: Path
) -> None:
    job_id = submit(*TRAINING, "--nodes=2", "--run=run", cwd=folder)
    run = folder / "run"
    wait_for_step(run, 5)
    busy = distrain("resume", "run", cwd=folder)
    assert busy.code == 2
    assert f"job {job_id} of run run is running" in busy.err
    cluster.call("scancel", job_id)
    wait_for_job(cluster, job_id, "CANCELLED")
    wait_until(lambda: status(run)["state"] == "stopped", "the save")
    assert checkpoint_steps(run) == [status(run)["step"]]
    assert state(run) == "stopped"
    (folder / "fast").touch()
    resumed = distrain("resume", "run", cwd=folder)
    assert resumed.code == 0, resumed.err
    wait_for_job(cluster, resumed.out.split()[2], "COMPLETED")
    assert_same(run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_run_continues_without_the_failed_node(cluster: Cluster, folder: Path, undisturbed: Path) -> None:
    save = "--set=checkpoint.every_steps=5"
    job_id = submit(*TRAINING, save, "--nodes=2", "--run=run", cwd=folder)
    run = folder / "run"
    wait_until(lambda: (run / "checkpoints").is_dir() and bool(checkpoint_steps(run)), "a checkpoint")
    assert cluster.field(job_id, "BatchHost") == "n1"  # a script that dies with its node can tell nobody of it
    cluster.kill_node("n2")
    wait_for_restart(cluster, job_id, 1)
    cluster.hurry(job_id)
    (folder / "fast").touch()
    wait_for_job(cluster, job_id, "COMPLETED")
    assert cluster.field(job_id, "ExcNodeList") == "n2"
    assert status(run)["weights_digest"] == status(undisturbed)["weights_digest"]
    cluster.start_node("n2")


@pytest.mark.slow
def test_job_that_fails_at_step_0_is_not_requeued(cluster: Cluster, folder: Path) -> None:
    awkward = "a b'c\"d$HOME`id`\n%j;e"  # the shell of the batch script sees it only as a word
    missing = "--set=model.name=nets:Missing"
    job_id = submit(*TRAINING, missing, f"--run={awkward}", f"--sbatch=job-name={awkward}", cwd=folder)
    wait_for_job(cluster, job_id, "FAILED")
    assert cluster.field(job_id, "Restarts") == "0"
    assert "module nets has no 'Missing'" in said(folder / awkward)
    assert state(folder / awkward) == "failed"
    assert {path.name for path in folder.iterdir()} == {"nets.py", awkward}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_array_trains_a_run_directory_in_each_of_its_four_tasks(cluster: Cluster, folder: Path) -> None:
    (folder / "fast").touch()
    seeds = [f"--array=train.seed={seed}" for seed in range(4)]
    job_id = submit(*TRAINING, *seeds, "--run=runs", cwd=folder)
    runs = [folder / "runs" / str(number) for number in range(4)]
    wait_until(
        lambda: all((run / "status.json").exists() and state(run) == "finished" for run in runs), "array", every_s=2
    )
    assert len({status(run)["weights_digest"] for run in runs}) == 4
    assert json.loads((runs[3] / "job.json").read_text())["id"] == f"{job_id}_3"


@pytest.mark.slow
def test_priority_and_cancel_are_those_of_the_queue_of_one_machine(cluster: Cluster, folder: Path) -> None:
    held = submit(*TRAINING, "--nodes=1", "--sbatch=hold", "--run=held", cwd=folder)
    assert distrain("priority", "held", "-5", cwd=folder).code == 0
    assert cluster.field(held, "Nice") == "5"
    assert "cancelled held" in distrain("cancel", "held", cwd=folder).out
    assert cluster.field(held, "JobState") == "CANCELLED"
    assert state(folder / "held") == "cancelled"
    running = submit(*TRAINING, "--nodes=1", "--run=running", cwd=folder)
    wait_for_step(folder / "running", 3)
    assert distrain("cancel", "running", cwd=folder).code == 0
    wait_until(lambda: state(folder / "running") == "cancelled", "the end of the job", every_s=0.5)
    assert checkpoint_steps(folder / "running") == [status(folder / "running")["step"]]
    assert cluster.field(running, "Restarts") == "0"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_jobs_at_once_on_one_host_by_hand(cluster: Cluster, folder: Path, undisturbed: Path) -> None:
    (folder / "fast").touch()
    jobs = []
    for name in ("one", "two"):
        held = submit(*TRAINING, "--nodes=2", "--sbatch=hold", f"--run={name}", cwd=folder)
        assert state(folder / name) == "queued"
        assert f"cancelled job {held}" in distrain("stop", name, cwd=folder).out
        assert cluster.field(held, "JobState") == "CANCELLED"
    script = str(Path(__file__).parents[2] / "slurm" / "train.sbatch")
    for name in ("one", "two"):
        options = ["--parsable", "--nodes=2", "--ntasks-per-node=1", f"--export=ALL,DISTRAIN_PYTHON={sys.executable}"]
        command = ["sbatch", *options, f"--output={name}.out", script, name]
        jobs.append(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip())
    for job_id in jobs:
        wait_for_job(cluster, job_id, "RUNNING")
    assert cluster.field(jobs[0], "JobState") == "RUNNING"
    assert cluster.field(jobs[0], "NodeList") == cluster.field(jobs[1], "NodeList") == "n[1-2]"
    for job_id, name in zip(jobs, ("one", "two"), strict=True):
        wait_for_job(cluster, job_id, "COMPLETED")
        assert_same(folder / name, undisturbed)


@pytest.mark.slow
def test_fit_inside_an_allocation_trains_on_its_nodes(cluster: Cluster, folder: Path, undisturbed: Path) -> None:
    (folder / "fast").touch()
    words = [sys.executable, "-m", "distrain", "fit", *TRAINING, "--launcher=slurm", "--run=run"]
    done = subprocess.run(["salloc", "--nodes=2", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(folder / "run", undisturbed)


@pytest.mark.slow
def test_gpus_of_the_allocation_are_seen_by_each_rank(cluster: Cluster, folder: Path, undisturbed: Path) -> None:
    if "gpu" not in cluster.call("sinfo", "--noheader", "--format=%G"):
        pytest.skip("device files are not permitted here, and SLURM wants some for GPUs")
    on_cpu = ["--procs=2", f"--sbatch=gpus-per-node={GPUS}"]
    job_id = submit(*TRAINING, *on_cpu, "--run=run", cwd=folder)
    run = folder / "run"
    wait_for_step(run, 1)
    for rank in (0, 1):
        environment = Path(f"/proc/{heartbeat(run, rank)['pid']}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=0,1" in environment
    (folder / "fast").touch()
    wait_for_job(cluster, job_id, "COMPLETED")
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_gpus_that_slurm_counts_and_no_driver_shows_are_missed_in_one_sentence(cluster: Cluster, folder: Path) -> None:
    if "gpu" not in cluster.call("sinfo", "--noheader", "--format=%G"):
        pytest.skip("device files are not permitted here, and SLURM wants some for GPUs")
    job_id = submit(*TRAINING, f"--gpus={GPUS}", "--run=run", cwd=folder)
    wait_for_job(cluster, job_id, "FAILED")
    assert cluster.field(job_id, "Restarts") == "0"
    assert " sees 0 GPUs on " in said(folder / "run")
    too_many = distrain("submit", *TRAINING, f"--gpus={2 * GPUS}", "--run=more", cwd=folder)
    assert too_many.code == 2
    assert "distrain: SLURM refuses the job: " in too_many.err
    assert not (folder / "more").exists()


def test_wrong_partition_is_one_sentence_and_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    done = distrain("submit", "digits", "--partition=nowhere", cwd=tmp_path)
    assert done.code == 2
    assert done.err == "distrain: SLURM refuses the job: invalid partition specified: nowhere\n"
    assert not list(tmp_path.iterdir())
