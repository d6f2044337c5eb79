"""Calls SLURM's commands: queries, submits, cancels and requeues jobs.

Their output is read line by line, and lines of an unexpected form are skipped: on many clusters these commands are
wrappers that print a banner.
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

# User settings that would change the output of SLURM's commands, hide jobs, or ask for a confirmation.
_CLIENT_SETTINGS = re.compile(r"(SQUEUE|SACCT|SCANCEL|SCONTROL|SINFO)_.*|SLURM_TIME_FORMAT|SLURM_DEBUG")
# Variables that SLURM sets in a job: about the job and about the options it was submitted with.
_OF_A_JOB = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|PMI|PMIX)_.*|SLURM_JOBID")
_OF_ALL_JOBS = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}  # which cluster and which user
_GPUS_OF_A_JOB = {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"}
# Variables of sbatch that would make another kind of job than `distrain submit` requests; --sbatch can still do so.
_OF_OTHER_JOBS = {"SBATCH_ARRAY_INX", "SBATCH_OPEN_MODE", "SBATCH_SIGNAL", "SBATCH_WAIT"}


@dataclass(frozen=True)
class JobInfo:
    """What SLURM reports about a job."""

    state: str  # SLURM's name: PENDING, RUNNING, COMPLETING, COMPLETED, CANCELLED, TIMEOUT, NODE_FAIL ...
    restarts: int = 0  # how many times it was requeued
    is_preempted: bool = False  # it is being preempted, and in its grace time
    where: str = ""  # the nodes, or in brackets the reason why it is pending

    @property
    def is_over(self) -> bool:
        """Whether the job has ended for good."""
        return self.state in _OVER

    @property
    def is_waiting(self) -> bool:
        """Whether the job is in the queue, maybe held, and will run."""
        return self.state in _WAITING

    @property
    def is_held(self) -> bool:
        """Whether the job waits until somebody releases it."""
        return self.state in {"REQUEUE_HOLD", "SPECIAL_EXIT"}


def read_jobs(job_ids: Iterable[str]) -> dict[str, JobInfo]:
    """Return what SLURM reports about jobs, by id; an empty dict on a machine without SLURM.

    The controller forgets jobs minutes after their end; these are looked up with sacct, if it is installed.
    """
    requested = sorted(set(job_ids))
    if not requested or shutil.which("squeue") is None:
        return {}
    found = {job_id: info for job_id, (_, info) in _list_jobs(",".join(requested)).items()}
    if (missing := [job_id for job_id in requested if job_id not in found]) and shutil.which("sacct") is not None:
        command = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State"]
        for line in _query([*command, f"--jobs={','.join(missing)}"]).splitlines():
            job_id, _, state = line.partition("|")
            if job_id in missing and state.strip():
                found[job_id] = JobInfo(state.split()[0])
    return found


def read_own_job(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return the id of the job that this process runs in, and how many times it was requeued.

    The id of an array task includes its number, as in 7_2: the id alone may mean the whole array. SLURM is queried,
    because a job submitted by another job may have inherited its variables. Where SLURM does not answer, they are used.
    """
    raw_id = environment["SLURM_JOB_ID"]
    for job_id, (listed_raw_id, info) in _list_jobs(raw_id).items():
        if listed_raw_id == raw_id:
            return job_id, info.restarts
    restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
    if "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}", restarts
    return raw_id, restarts


def failed_nodes(node_list: str) -> list[str]:
    """Return the nodes of a list in SLURM's short form that SLURM considers down."""
    names = _query(["sinfo", "--noheader", "--Node", f"--nodes={node_list}", "--format=%N %T"])
    rows = (words for line in names.splitlines() if len(words := line.split()) == 2)
    return sorted({name for name, state in rows if any(word in state.upper() for word in _FAILED_NODE_STATES)})


def read_node_address(node: str) -> str:
    """Return the network address of a node according to SLURM, else the name itself."""
    found = re.search(r"\bNodeAddr=(\S+)", _query(["scontrol", "show", "node", node]))
    return found.group(1) if found else node


def find_steps(job_id: str, *, host: str, srun_pid: int) -> list[str]:
    """Return the steps of a job, such as 12.1, that one srun has started, given the host and process id of that srun.

    A step that still waits for its resources has no number, and is not included.
    """
    described = _query(["scontrol", "--oneliner", "show", "step", job_id]).splitlines()
    mine = re.compile(rf"StepId=(\S+\.\d+) .*\bSrunHost:Pid={re.escape(host)}:{srun_pid}\b")
    return [found.group(1) for line in described if (found := mine.match(line.strip()))]


def has_step(step_id: str) -> bool:
    """Return whether a step such as 12.1 exists; True where SLURM does not answer."""
    done = _run(["scontrol", "--oneliner", "show", "step", step_id])
    output = "" if done is None else done.stdout + done.stderr
    return "StepId=" in output or not ("not found" in output or "Invalid job id" in output)


def kill_steps(step_ids: Iterable[str]) -> None:
    """Kill steps of a job, on all its nodes."""
    if steps := list(step_ids):
        _query(["scancel", "--signal=KILL", *steps])


def exclude_nodes(job_id: str, nodes: Iterable[str]) -> None:
    """Exclude these nodes from a requeued job."""
    _query(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}"])


def cancel(job_id: str) -> None:
    """Cancel a pending or running job; raises `LaunchError` where SLURM refuses."""
    _command(["scancel", job_id])


def set_priority(job_id: str, priority: int) -> None:
    """Set how much earlier than others of its user a job runs; raises `LaunchError` where SLURM refuses.

    It is the negative of SLURM's nice value: only operators may give a job more than 0.
    """
    _command(["scontrol", "update", f"JobId={job_id}", f"Nice={-priority}"])


def requeue(job_id: str) -> None:
    """End a job and queue it again under the same id; raises `LaunchError` where SLURM refuses."""
    _command(["scontrol", "requeue", job_id])


def submit(command: list[str], *, cwd: str, env: Mapping[str, str]) -> str:
    """Call sbatch, with --parsable, and return the job's id; raises `LaunchError` with the message of sbatch.

    `env` is added to this process's environment, without the variables of a job that this process runs in.
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
        raise LaunchError("sbatch is not installed on this machine; submit from a login node of the cluster") from None
    if done.returncode:
        complaint = first_complaint(done.stderr) or f"exit code {done.returncode}"
        raise LaunchError(f"SLURM refuses the job: {complaint}")
    return _read_job_id(done.stdout)


def submitting_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for sbatch: that of this process, without the variables of the job that it runs in.

    Otherwise sbatch would use the options of that job for the new one, and the new job would see that job's ids.
    """
    kept = {name: value for name, value in environment.items() if name not in _OF_OTHER_JOBS}
    if not kept.keys() & {"SLURM_JOB_ID", "SLURM_JOBID"}:
        return kept
    if kept.keys() & {"SLURM_JOB_GPUS", "SLURM_STEP_GPUS"}:
        kept = {name: value for name, value in kept.items() if name not in _GPUS_OF_A_JOB}
    return {name: value for name, value in kept.items() if name in _OF_ALL_JOBS or not _OF_A_JOB.fullmatch(name)}


def first_complaint(stderr: str) -> str:
    """Return the first error that a SLURM command printed, without the command's name."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    complaints = [line for line in lines if "error:" in line] or lines
    return complaints[0].partition("error:")[2].strip() or complaints[0] if complaints else ""


def _read_job_id(printed: str) -> str:
    """Return the id in the output of sbatch: on a separate line, with the cluster's name where there are several."""
    ids = [found.group(1) for line in printed.splitlines() if (found := _JOB_ID.fullmatch(line))]
    if not ids:
        output = " ".join(printed.split())[:200]
        raise LaunchError(
            f"sbatch succeeded but printed no job id on a separate line ({output or 'no output'}); "
            "check with `squeue --me` whether the job exists, cancel it, and check the sbatch that is first on PATH"
        )
    return ids[-1]  # the output of a wrapper comes before it


def _list_jobs(job_ids: str) -> dict[str, tuple[str, JobInfo]]:
    """Return the raw id (also of an array task) and the info of each job, by its id (123_4 for an array task)."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job_ids}", f"--Format={_FIELDS}"]
    found = {}
    for line in _query(command).splitlines():
        words = line.split(maxsplit=5)
        if len(words) < 5 or not re.fullmatch(r"\d+(_\d+)?", words[0]) or not words[3].isdecimal():
            continue
        job_id, raw_id, state, restarts, preempted, *where = words
        info = JobInfo(state, int(restarts), preempted not in _NO_TIME, "".join(where).strip())
        found[job_id] = raw_id, info
    return found


def _query(command: list[str]) -> str:
    """Return the output of a SLURM command, or an empty string where it fails, so that callers work without it."""
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


def _command(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, env=_query_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not installed on this machine; use a login node of the cluster") from None
    if done.returncode:
        raise LaunchError(f"{command[0]} refuses: {first_complaint(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def _query_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not _CLIENT_SETTINGS.fullmatch(name)}
