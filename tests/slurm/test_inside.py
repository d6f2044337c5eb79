"""Commands that run inside a job: they do not affect that job, and what they start is independent of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_runner import command, distrain, heartbeat, status, wait_for_step, wait_until
from tests.slurm.cluster import GPUS, Cluster
from tests.slurm.test_jobs import SLOW_NET, TRAINING, minutes_run, said, state, submit, wait_for_job, wait_for_restart

PYTHON = ["--export=ALL", sys.executable, "-m", "distrain"]


SLEEPY_LOSS = """
import time, torch
CALLS = []
def loss(logits, targets):
    CALLS.append(1)
    if len(CALLS) > 20:
        time.sleep(1000)
    return torch.nn.functional.cross_entropy(logits, targets)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that a test submits from."""
    (tmp_path / "nets.py").write_text(SLOW_NET)
    return tmp_path


def batch(cluster: Cluster, folder: Path, script: str, *options: str) -> str:
    """Submit a script as a job; returns the job's id."""
    (folder / "job.sh").write_text(f"#!/bin/bash\n{script}\n")
    return cluster.call("sbatch", "--parsable", f"--chdir={folder}", "--output=/dev/null", *options, f"{folder}/job.sh")


def job_of(run: Path) -> str:
    found: str = json.loads((run / "job.json").read_text())["id"]
    return found


def environment(run: Path) -> dict[str, str]:
    """The environment of a run's rank 0."""
    words = Path(f"/proc/{heartbeat(run, 0)['pid']}/environ").read_bytes().decode().split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_job_submitted_by_an_array_task_is_independent(cluster: Cluster, folder: Path) -> None:
    inner = [sys.executable, "-m", "distrain", "submit", *TRAINING, "--time=30", "--sbatch=mem=1000", "--run=run"]
    words = subprocess.list2cmdline(inner)
    script = f"[ $SLURM_ARRAY_TASK_ID = 0 ] || {words}\nsleep 300"
    outer = batch(
        cluster, folder, script, "--array=0-1", "--mem-per-cpu=200", f"--gres=gpu:{GPUS}" if gpus(cluster) else "-n1"
    )
    run = folder / "run"
    wait_until(lambda: (run / "job.json").exists(), "the submission")
    wait_for_step(run, 3)
    job_id = job_of(run)
    assert job_id.isdecimal()
    assert job_id not in {outer, str(int(outer) + 1)}
    seen = environment(run)
    assert seen["SLURM_JOB_ID"] == job_id
    assert seen["SLURM_MEM_PER_NODE"] == "1000"
    assert not {name for name in seen if name.startswith("SLURM_ARRAY")}
    assert not seen.keys() & {"SLURM_MEM_PER_CPU", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"}
    cluster.call("scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes_run(cluster, job_id) + 2}")
    wait_for_restart(cluster, job_id, 1)
    assert f"cancelled job {job_id}" in distrain("stop", "run", cwd=folder).out
    for task in (0, 1):
        assert cluster.field(f"{outer}_{task}", "JobState") == "RUNNING"
        assert cluster.field(f"{outer}_{task}", "Restarts") == "0"


def gpus(cluster: Cluster) -> bool:
    return "gpu" in cluster.call("sinfo", "--noheader", "--format=%G")


def test_fit_in_a_step_shares_what_the_step_holds(cluster: Cluster, folder: Path) -> None:
    (folder / "fast").touch()
    words = ["fit", *TRAINING, "--set=train.max_steps=20", "--launcher=slurm", "--run=run"]
    step = ["srun", "--ntasks=1", "--cpus-per-task=2", *PYTHON, *words]
    done = subprocess.run(step, cwd=folder, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(folder / "run")["state"] == "finished"


@pytest.mark.parametrize("words", [["fit", "--run=run"], ["submit"]])
def test_command_that_srun_starts_twice_is_refused(cluster: Cluster, folder: Path, words: list[str]) -> None:
    step = ["srun", "--ntasks=2", *PYTHON, words[0], *TRAINING, *words[1:]]
    done = subprocess.run(step, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    sentence = f"distrain: srun has started 2 tasks of `distrain {words[0]}`, and each of them would do all of the work"
    assert done.stderr.count(sentence) == 2
    assert not done.stdout
    assert [path.name for path in folder.iterdir()] == ["nets.py"]


@pytest.mark.slow
def test_fit_in_a_batch_script_that_a_step_has_submitted_by_hand_is_not_refused(cluster: Cluster, folder: Path) -> None:
    """The variables of the step come along, as they do by default, and say nothing of the new job."""
    (folder / "fast").touch()
    inner = subprocess.list2cmdline(command("fit", *TRAINING, "--set=train.max_steps=3", "--run=run"))
    (folder / "inner.sh").write_text(f"#!/bin/bash\n{inner}\n")
    outer = ["bash", "-c", f"[ $SLURM_PROCID = 1 ] || sbatch --wait --output={folder}/out --chdir={folder} inner.sh"]
    subprocess.run(["srun", "--ntasks=2", *outer], cwd=folder, check=True, capture_output=True, timeout=90)
    assert status(folder / "run")["state"] == "finished", (folder / "out").read_text()


@pytest.mark.slow
def test_wait_for_another_step_is_reported_and_ends_with_a_stop_or_that_step(cluster: Cluster, folder: Path) -> None:
    (folder / "fast").touch()
    options = ["--set=train.max_steps=3", "--launcher=slurm", "--run=run"]
    training = subprocess.list2cmdline(command("fit", *TRAINING, *options))
    holds = "srun --ntasks=2 bash -c 'touch held; until [ -f over ]; do sleep 0.2; done' &"
    begun = f"until [ -f held ]; do sleep 0.2; done\n{training} > first 2>&1\necho $? > code\n{training} > second 2>&1"
    job_id = batch(cluster, folder, f"{holds}\n{begun}\nwait", "--ntasks=2", "--nodes=1")

    def is_told(name: str) -> bool:
        return (folder / name).exists() and "srun waits for resources of job" in (folder / name).read_text()

    wait_until(lambda: is_told("first"), "the word of the first training", every_s=0.2)
    assert distrain("stop", "run", cwd=folder).code == 0
    wait_until(lambda: is_told("second"), "the word of the second training", every_s=0.2)
    assert (folder / "code").read_text() == "75\n"
    assert not (folder / "run" / "stop").exists()
    (folder / "over").touch()
    wait_for_job(cluster, job_id, "COMPLETED")
    assert status(folder / "run")["state"] == "finished"


@pytest.mark.slow
def test_killed_attempt_ends_only_its_own_steps(cluster: Cluster, folder: Path) -> None:
    """A stalled attempt is killed, with its step; another step of the same job continues."""
    (folder / "fast").touch()
    (folder / "sleepy.py").write_text(SLEEPY_LOSS)
    words = ["--set=loss={name: 'sleepy:loss'}", "--launcher=slurm", "--stall-timeout=5", "--restarts=0", "--run=run"]
    training = subprocess.list2cmdline(command("fit", *TRAINING, *words))
    other = "srun --ntasks=1 --overlap bash -c 'until [ -f over ]; do sleep 0.2; done; touch lived' &"
    script = f"{other}\n{training}\ntouch over\nwait"
    job_id = batch(cluster, folder, script, "--ntasks=2")
    wait_for_job(cluster, job_id, "COMPLETED")
    assert '"type": "Stalled"' in (folder / "run" / "errors" / "rank-0.json").read_text()
    assert (folder / "lived").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", ["the environment", "an option"])
def test_code_and_python_reach_the_job_where_sbatch_or_srun_export_nothing(
    cluster: Cluster, folder: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = []
    if way == "the environment":
        monkeypatch.setenv("SLURM_EXPORT_ENV", "NONE")
        monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    else:  # distrain itself may lie on PYTHONPATH in this test
        option = ["--sbatch=export=PYTHONPATH" if "PYTHONPATH" in os.environ else "--sbatch=export=NONE"]
    submit(*TRAINING, *option, "--run=run", cwd=folder)
    (folder / "nets.py").unlink()
    run = folder / "run"
    wait_for_step(run, 1)
    assert environment(run)["PYTHONPATH"].split(":")[0] == str(run / "code")
    assert Path(f"/proc/{heartbeat(run, 0)['pid']}/exe").samefile(sys.executable)


@pytest.mark.slow
def test_job_requeued_on_hold_is_not_dead(cluster: Cluster, folder: Path) -> None:
    job_id = submit(*TRAINING, "--run=run", cwd=folder)
    run = folder / "run"
    wait_for_step(run, 3)
    cluster.call("scontrol", "requeuehold", "State=SpecialExit", job_id)
    wait_for_job(cluster, job_id, "SPECIAL_EXIT")
    assert state(run) == "requeued"
    again = distrain("resume", "run", cwd=folder)
    assert again.code == 2
    assert f"job {job_id} of run run is special_exit; `scontrol release {job_id}` lets it continue" in again.err
    cluster.call("scontrol", "release", job_id)
    cluster.hurry(job_id)
    (folder / "fast").touch()
    wait_for_job(cluster, job_id, "COMPLETED")
    assert status(run)["state"] == "finished"


@pytest.mark.slow
def test_run_with_gpus_requested_by_options_of_sbatch_needs_them(cluster: Cluster, folder: Path) -> None:
    if not gpus(cluster):
        pytest.skip("device files are not permitted here, and SLURM wants some for GPUs")
    job_id = submit(*TRAINING, f"--sbatch=gres=gpu:{GPUS}", "--run=run", cwd=folder)
    wait_for_job(cluster, job_id, "FAILED")  # there is no GPU here: on the CPU it would have trained
    assert f"on {GPUS} GPUs" in said(folder / "run")
    assert " sees 0 GPUs on " in said(folder / "run")


@pytest.mark.slow
def test_settings_and_wrappers_of_slurms_commands_hide_no_job(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = folder / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sinfo"):
        real = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        (programs / name).write_text(f'#!/bin/bash\necho; echo "Welcome to cluster 12"; echo ---\nexec {real} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name, value in {
        "SQUEUE_USERS": "nobody",
        "SQUEUE_PARTITION": "urgent",
        "SQUEUE_FORMAT": "%j",
        "SLURM_TIME_FORMAT": "%a %b %d %T",
        "SCANCEL_PARTITION": "urgent",
        "SCANCEL_INTERACTIVE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    job_id = submit(*TRAINING, "--sbatch=hold", "--run=run", cwd=folder)
    assert job_of(folder / "run") == job_id
    assert job_id.isdecimal()
    assert state(folder / "run") == "queued"
    assert "is pending" in distrain("resume", "run", cwd=folder).err
    assert f"cancelled job {job_id}" in distrain("stop", "run", cwd=folder).out
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    assert cluster.field(job_id, "JobState") == "CANCELLED"
