"""Decides whether a run is alive or died: by its locks, its heartbeat, or the state of its SLURM job."""

import socket
import time
from collections.abc import Sequence
from pathlib import Path

from distrain.runs import slurm
from distrain.runs.directory import RunDirectory
from distrain.runs.slurm import JobInfo
from distrain.runs.status import Job, State, Status

SILENT_AFTER_S = 60.0  # a running run writes its status every second, later during a long save or evaluation
_NEXT_HEARTBEAT_S = 3.0  # a run that is alive writes another heartbeat in this time
_MAX_CLOCK_DIFFERENCE_S = 3600.0  # a heartbeat older than this is the last one, whatever the clocks
WAITING: tuple[State, ...] = ("queued", "preempted")  # of a run in a queue that no process trains
LIVE_STATES: tuple[State, ...] = ("starting", "running", "stopping")  # in the status of a run that is alive
_POLL_S = 0.1


def wait_for_end(run: RunDirectory) -> None:
    """Return once no process trains in the run."""
    while is_alive(run):
        time.sleep(_POLL_S)


def is_alive(run: RunDirectory) -> bool:
    """Whether a process launches the run or trains in it."""
    return run.is_held or (run.read_status().state in LIVE_STATES and not find_dead([run]))


def find_dead(runs: list[RunDirectory]) -> set[Path]:
    """Return the paths of those runs whose status is that of a live run, although no process launches or trains them.

    Such a process holds a lock of the run, which is released however the process ends. Another node may not share
    locks with this one; there the heartbeat decides. It has the time of that node, which may differ by minutes: if
    it is not from the last minute, the run is alive if another heartbeat follows. The wait of `_NEXT_HEARTBEAT_S` is
    one for all runs.
    """
    dead, doubtful = set[Path](), dict[Path, float]()
    for run in runs:
        if run.is_held:
            continue
        status = run.read_status()  # after the lock: a run writes how it ended before it releases the lock
        if status.state not in LIVE_STATES:
            continue
        age_s = time.time() - status.heartbeat
        if not _is_elsewhere(status) or age_s >= _MAX_CLOCK_DIFFERENCE_S:
            dead.add(run.path)
        elif not 0 <= age_s <= SILENT_AFTER_S:
            doubtful[run.path] = status.heartbeat
    if doubtful:
        time.sleep(_NEXT_HEARTBEAT_S)
    return dead | {path for path, beat in doubtful.items() if RunDirectory(path).read_status().heartbeat == beat}


def read_states(runs: list[RunDirectory]) -> dict[Path, str]:
    """Return the state of each run as one or two words, from its status and its SLURM job, if it has one."""
    return find_states([(run, run.read_status().state, run.read_job()) for run in runs])


def find_states(found: Sequence[tuple[RunDirectory, State, Job | None]]) -> dict[Path, str]:
    """Return what `read_states` does for runs whose status and job have just been read."""
    jobs = {run.path: job for run, state, job in found if job is not None and state != "finished"}
    infos = slurm.read_jobs(job.id for job in jobs.values())
    known = {path: infos[job.id] for path, job in jobs.items() if job.id in infos}
    dead = find_dead([run for run, state, _ in found if run.path not in known and state in LIVE_STATES])
    return {
        run.path: state_on_cluster(state, known[run.path])
        if run.path in known
        else _state_without_job(run, state, has_job=job is not None, is_dead=run.path in dead)
        for run, state, job in found
    }


def state_on_cluster(state: State, info: JobInfo) -> str:
    """Return the state of a run from that in its status, which does not know what happens in the queue, and its job.

    While the job runs, the status decides.
    """
    if info.is_waiting:
        return "requeued" if info.restarts and state != "queued" else "queued"
    if info.is_over:
        if state in {*LIVE_STATES, "queued", "preempted"}:
            return {"CANCELLED": "cancelled", "TIMEOUT": "timed out", "FAILED": "failed"}.get(info.state, "died")
        return state
    if info.state == "RUNNING" and state in {"queued", "preempted"}:
        return "starting"
    return state


def _state_without_job(run: RunDirectory, state: State, *, has_job: bool, is_dead: bool) -> str:
    if state == "queued":  # no rank has written a status yet
        return "starting" if run.is_held else "queued" if has_job or is_queued(run) else "never started"
    return "died" if is_dead else state


def is_queued(run: RunDirectory) -> bool:
    """Whether a run waits in the queue of its machine."""
    return run.read_local_job() is not None and run.read_status().state in WAITING and not run.is_held


def _is_elsewhere(status: Status) -> bool:
    return bool(status.attempts) and status.attempts[-1].host != socket.gethostname()
