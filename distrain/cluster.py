"""Owns the questions to SLURM and the orders to it: what became of a job, submit it, cancel it, queue it again."""

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from distrain.errors import LaunchError

_TIMEOUT_S = 60.0
_FAILED_NODE_STATES = ("DOWN", "FAIL", "NOT_RESPONDING")
_FIELDS = "JobArrayID:64,State:32,RestartCnt:16,PreemptTime:32,ReasonList:256"


@dataclass(frozen=True)
class JobFacts:
    """What SLURM says of a job."""

    state: str  # in SLURM's words: PENDING, RUNNING, COMPLETING, COMPLETED, CANCELLED, TIMEOUT, NODE_FAIL ...
    restarts: int = 0  # how often it was queued again
    is_preempted: bool = False  # it has been told to make room, and runs its grace time
    where: str = ""  # the nodes, or in brackets why it waits

    @property
    def is_over(self) -> bool:
        """Whether the job will not run any more."""
        return self.state not in {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}


def read_jobs(job_ids: Iterable[str]) -> dict[str, JobFacts]:
    """Return what SLURM knows of jobs, by their ids; nothing on a machine without SLURM.

    Those that the controller has forgotten, minutes after their end, are looked up with sacct, if it is there.
    """
    wanted = sorted(set(job_ids))
    if not wanted or shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(wanted)}"]
    found: dict[str, JobFacts] = {}
    for line in _ask([*command, f"--Format={_FIELDS}"]).splitlines():
        job_id, state, restarts, preempted, *where = line.split(maxsplit=4)
        found[job_id] = JobFacts(state, int(restarts), preempted not in {"N/A", "None", "0"}, "".join(where).strip())
    if (missing := [job_id for job_id in wanted if job_id not in found]) and shutil.which("sacct") is not None:
        command = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State"]
        for line in _ask([*command, f"--jobs={','.join(missing)}"]).splitlines():
            job_id, _, state = line.partition("|")
            found[job_id] = JobFacts(state.split()[0])
    return found


def failed_nodes(node_list: str) -> list[str]:
    """Return the nodes of a list in SLURM's short form that SLURM itself has found to be down."""
    names = _ask(["sinfo", "--noheader", "--Node", f"--nodes={node_list}", "--format=%N %T"])
    rows = (line.split() for line in names.splitlines())
    return sorted({name for name, state in rows if any(word in state.upper() for word in _FAILED_NODE_STATES)})


def exclude_nodes(job_id: str, nodes: Iterable[str]) -> None:
    """Have a job that is queued again not come to these nodes."""
    _ask(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}"])


def cancel(job_id: str) -> None:
    """Take a job out of the queue, or end it; raises `LaunchError` where SLURM refuses."""
    _order(["scancel", job_id])


def requeue(job_id: str) -> None:
    """End a job and queue it again under its own id; raises `LaunchError` where SLURM refuses."""
    _order(["scontrol", "requeue", job_id])


def _ask(command: list[str]) -> str:
    """Return what SLURM answers, nothing where it has no answer: what is known without it is told all the same."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _order(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not on this machine; go to one of the cluster's login nodes") from None
    if done.returncode:
        raise LaunchError(f"{command[0]} refuses: {first_complaint(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def submit(command: list[str], *, cwd: str, env: dict[str, str]) -> str:
    """Call sbatch, with --parsable, and return the job's id; raises `LaunchError` with sbatch's own words."""
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LaunchError("sbatch is not on this machine; submit from one of the cluster's login nodes") from None
    if done.returncode:
        complaint = first_complaint(done.stderr) or f"exit code {done.returncode}"
        raise LaunchError(f"SLURM refuses the job: {complaint}")
    return done.stdout.strip().partition(";")[0]  # --parsable adds the cluster's name where there are several


def first_complaint(stderr: str) -> str:
    """Return the first error in what a SLURM command says, without the command's name before it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    complaints = [line for line in lines if "error:" in line] or lines
    return complaints[0].partition("error:")[2].strip() or complaints[0] if complaints else ""
