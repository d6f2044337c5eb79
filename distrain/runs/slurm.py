"""Calls SLURM's commands: asks what became of a job, submits it, cancels it, and queues it again.

What they print is read line by line, and a line that is not of the expected form is skipped: on many clusters these
commands are wrappers that print a banner of their own.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distrain.errors import LaunchError

_TIMEOUT_S = 60.0
_FAILED_NODE_STATES = ("DOWN", "FAIL", "NOT_RESPONDING")
_FIELDS = "JobArrayID:64,JobID:20,State:32,RestartCnt:16,PreemptTime:32,ReasonList:256"
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
_NO_TIME = {"N/A", "None", "0"}
_JOB_ID = re.compile(r"\s*(?:Submitted batch job )?(\d+)(?:;\S+| on cluster \S+)?\s*")

# Settings of a user's own that would change what SLURM's commands print, leave out jobs, or ask for a confirmation.
_CLIENT_SETTINGS = re.compile(r"(SQUEUE|SACCT|SCANCEL|SCONTROL|SINFO)_.*|SLURM_TIME_FORMAT|SLURM_DEBUG")
# What SLURM tells a job of itself and of the options it was submitted with, its GPUs among them.
_OF_A_JOB = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|PMI|PMIX)_.*|SLURM_JOBID")
_OF_ALL_JOBS = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}  # where the cluster is, and who asks
_GPUS_OF_A_JOB = {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"}
# Variables of sbatch that make another kind of job than `distrain submit` asks for: --sbatch says so where it is meant.
_OF_OTHER_JOBS = {"SBATCH_ARRAY_INX", "SBATCH_OPEN_MODE", "SBATCH_SIGNAL", "SBATCH_WAIT"}


@dataclass(frozen=True)
class JobInfo:
    """What SLURM says of a job."""

    state: str  # in SLURM's words: PENDING, RUNNING, COMPLETING, COMPLETED, CANCELLED, TIMEOUT, NODE_FAIL ...
    restarts: int = 0  # how often it was queued again
    is_preempted: bool = False  # it has been told to make room, and runs its grace time
    where: str = ""  # the nodes, or in brackets why it waits

    @property
    def is_over(self) -> bool:
        """Whether the job will not run any more."""
        return self.state in _OVER

    @property
    def is_waiting(self) -> bool:
        """Whether the job is in the queue, perhaps held there, and will run."""
        return self.state in _WAITING

    @property
    def is_held(self) -> bool:
        """Whether the job waits until somebody releases it."""
        return self.state in {"REQUEUE_HOLD", "SPECIAL_EXIT"}


def read_jobs(job_ids: Iterable[str]) -> dict[str, JobInfo]:
    """Return what SLURM knows of jobs, by their ids; nothing on a machine without SLURM.

    Those that the controller has forgotten, minutes after their end, are looked up with sacct, if it is there.
    """
    wanted = sorted(set(job_ids))
    if not wanted or shutil.which("squeue") is None:
        return {}
    found = {job_id: facts for job_id, (_, facts) in _list_jobs(",".join(wanted)).items()}
    if (missing := [job_id for job_id in wanted if job_id not in found]) and shutil.which("sacct") is not None:
        command = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State"]
        for line in _ask([*command, f"--jobs={','.join(missing)}"]).splitlines():
            job_id, _, state = line.partition("|")
            if job_id in missing and state.strip():
                found[job_id] = JobInfo(state.split()[0])
    return found


def read_own_job(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return the id of the job that this process runs in, and how often it was queued again.

    A task of an array is named with its number, 7_2: the id alone may mean the whole array. SLURM is asked, since a job
    that another job has submitted may have inherited that one's variables; they count where SLURM does not answer.
    """
    raw_id = environment["SLURM_JOB_ID"]
    for job_id, (own_raw_id, facts) in _list_jobs(raw_id).items():
        if own_raw_id == raw_id:
            return job_id, facts.restarts
    restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
    if "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}", restarts
    return raw_id, restarts


def failed_nodes(node_list: str) -> list[str]:
    """Return the nodes of a list in SLURM's short form that SLURM itself has found to be down."""
    names = _ask(["sinfo", "--noheader", "--Node", f"--nodes={node_list}", "--format=%N %T"])
    rows = (words for line in names.splitlines() if len(words := line.split()) == 2)
    return sorted({name for name, state in rows if any(word in state.upper() for word in _FAILED_NODE_STATES)})


def read_node_address(node: str) -> str:
    """Return the network address of a node as SLURM knows it, else the name itself."""
    found = re.search(r"\bNodeAddr=(\S+)", _ask(["scontrol", "show", "node", node]))
    return found.group(1) if found else node


def find_steps(job_id: str, *, host: str, srun_pid: int) -> list[str]:
    """Return the steps of a job that one srun has started, such as 12.1, by that srun's host and process id.

    A step that still waits for its resources has no number, and is left out.
    """
    described = _ask(["scontrol", "--oneliner", "show", "step", job_id]).splitlines()
    mine = re.compile(rf"StepId=(\S+\.\d+) .*\bSrunHost:Pid={re.escape(host)}:{srun_pid}\b")
    return [found.group(1) for line in described if (found := mine.match(line.strip()))]


def has_step(step_id: str) -> bool:
    """Return whether there is a step such as 12.1; True where SLURM does not answer."""
    done = _run(["scontrol", "--oneliner", "show", "step", step_id])
    said = "" if done is None else done.stdout + done.stderr
    return "StepId=" in said or not ("not found" in said or "Invalid job id" in said)


def kill_steps(step_ids: Iterable[str]) -> None:
    """Kill steps of a job, on all its nodes."""
    if steps := list(step_ids):
        _ask(["scancel", "--signal=KILL", *steps])


def exclude_nodes(job_id: str, nodes: Iterable[str]) -> None:
    """Have a job that is queued again not come to these nodes."""
    _ask(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}"])


def cancel(job_id: str) -> None:
    """Take a job out of the queue, or end it; raises `LaunchError` where SLURM refuses."""
    _order(["scancel", job_id])


def requeue(job_id: str) -> None:
    """End a job and queue it again under its own id; raises `LaunchError` where SLURM refuses."""
    _order(["scontrol", "requeue", job_id])


def submit(command: list[str], *, cwd: str, env: Mapping[str, str]) -> str:
    """Call sbatch, with --parsable, and return the job's id; raises `LaunchError` with sbatch's own words.

    `env` is added to this process's environment, without what a job around this process has in it.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**submitting_environment(os.environ), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise LaunchError("sbatch is not on this machine; submit from one of the cluster's login nodes") from None
    if done.returncode:
        complaint = first_complaint(done.stderr) or f"exit code {done.returncode}"
        raise LaunchError(f"SLURM refuses the job: {complaint}")
    return _read_job_id(done.stdout)


def submitting_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for sbatch: that of this process, without what describes the job that it runs in.

    sbatch would take that job's options for the new one, and the new job would take that job's ids for its own.
    """
    kept = {name: value for name, value in environment.items() if name not in _OF_OTHER_JOBS}
    if not kept.keys() & {"SLURM_JOB_ID", "SLURM_JOBID"}:
        return kept
    if kept.keys() & {"SLURM_JOB_GPUS", "SLURM_STEP_GPUS"}:
        kept = {name: value for name, value in kept.items() if name not in _GPUS_OF_A_JOB}
    return {name: value for name, value in kept.items() if name in _OF_ALL_JOBS or not _OF_A_JOB.fullmatch(name)}


def first_complaint(stderr: str) -> str:
    """Return the first error in what a SLURM command says, without the command's name before it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    complaints = [line for line in lines if "error:" in line] or lines
    return complaints[0].partition("error:")[2].strip() or complaints[0] if complaints else ""


def _read_job_id(printed: str) -> str:
    """Return the id in what sbatch prints: on a line of its own, with the cluster's name where there are several."""
    ids = [found.group(1) for line in printed.splitlines() if (found := _JOB_ID.fullmatch(line))]
    if not ids:
        said = " ".join(printed.split())[:200]
        raise LaunchError(
            f"sbatch ended well and printed no job id on a line of its own ({said or 'nothing at all'}); "
            "see with `squeue --me` whether the job is there, cancel it, and check the sbatch that is first on PATH"
        )
    return ids[-1]  # what a wrapper prints comes before it


def _list_jobs(job_ids: str) -> dict[str, tuple[str, JobInfo]]:
    """Return of each job, by its id, the id that it has as a task of an array too, and what SLURM says of it."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job_ids}", f"--Format={_FIELDS}"]
    found = {}
    for line in _ask(command).splitlines():
        words = line.split(maxsplit=5)
        if len(words) < 5 or not re.fullmatch(r"\d+(_\d+)?", words[0]) or not words[3].isdecimal():
            continue
        job_id, raw_id, state, restarts, preempted, *where = words
        facts = JobInfo(state, int(restarts), preempted not in _NO_TIME, "".join(where).strip())
        found[job_id] = raw_id, facts
    return found


def _ask(command: list[str]) -> str:
    """Return what SLURM answers, nothing where it has no answer: what is known without it is told all the same."""
    done = _run(command)
    return done.stdout if done is not None and done.returncode == 0 else ""


def _run(command: list[str]) -> "subprocess.CompletedProcess[str] | None":
    try:
        return subprocess.run(
            command,
            env=_query_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _order(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, env=_query_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not on this machine; go to one of the cluster's login nodes") from None
    if done.returncode:
        raise LaunchError(f"{command[0]} refuses: {first_complaint(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def _query_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not _CLIENT_SETTINGS.fullmatch(name)}
