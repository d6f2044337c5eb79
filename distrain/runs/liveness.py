"""Tells a run that is alive from one that died: by its locks, by its heartbeat, or by what SLURM says of its job."""

import socket
import time
from pathlib import Path

from distrain.runs import slurm
from distrain.runs.directory import RunDirectory
from distrain.runs.slurm import JobInfo
from distrain.runs.status import State, Status

SILENT_AFTER_S = 60.0  # a running run writes its status every second; a long save or evaluation may pause it
_NEXT_BEAT_S = 3.0  # another heartbeat of a run that is alive is there by then
_MAX_APART_S = 3600.0  # of two clocks: a heartbeat that is older is the last one
_CLAIMS: tuple[State, ...] = ("starting", "running", "stopping")  # what the status of a run that is alive says
_POLL_S = 0.1


def wait_for_end(run: RunDirectory) -> None:
    """Return once nothing trains in the run any more."""
    while is_alive(run):
        time.sleep(_POLL_S)


def is_alive(run: RunDirectory) -> bool:
    """Whether a process launches the run or trains in it."""
    return run.is_held or (run.read_status().state in _CLAIMS and not find_dead([run]))


def find_dead(runs: list[RunDirectory]) -> set[Path]:
    """Return the paths of those runs that claim to be alive, while nothing launches them nor trains in them.

    Whoever does holds a lock of the run, which goes with the process however that ends. Another machine may share no
    locks with this one. Its heartbeat counts then, with the time of that machine, which may differ by minutes: where it
    is not of the last minute, what counts is whether another one follows. That takes `_NEXT_BEAT_S`, for all of them
    together.
    """
    dead, doubtful = set[Path](), dict[Path, float]()
    for run in runs:
        if run.is_held:
            continue
        status = run.read_status()  # after the lock: a run that ends says how before it lets go
        if status.state not in _CLAIMS:
            continue
        age_s = time.time() - status.heartbeat
        if not _is_elsewhere(status) or age_s >= _MAX_APART_S:
            dead.add(run.path)
        elif not 0 <= age_s <= SILENT_AFTER_S:
            doubtful[run.path] = status.heartbeat
    if doubtful:
        time.sleep(_NEXT_BEAT_S)
    return dead | {path for path, beat in doubtful.items() if RunDirectory(path).read_status().heartbeat == beat}


def read_states(runs: list[RunDirectory]) -> dict[Path, str]:
    """Return for each run its state in a word, joined with what SLURM says of its job, if it has one."""
    jobs = {run.path: job for run in runs if (job := run.read_job()) is not None}
    facts = slurm.read_jobs(job.id for job in jobs.values())
    known = {path: facts[job.id] for path, job in jobs.items() if job.id in facts}
    dead = find_dead([run for run in runs if run.path not in known])
    return {
        run.path: state_on_cluster(run.read_status(), known[run.path])
        if run.path in known
        else _state_here(run, has_job=run.path in jobs, is_dead=run.path in dead)
        for run in runs
    }


def state_on_cluster(status: Status, facts: JobInfo) -> str:
    """Return the state of a run whose job is as SLURM says: the status alone knows nothing of what happens to a queue.

    While the job runs, the run's own word counts.
    """
    if facts.is_waiting:
        return "requeued" if facts.restarts and status.state != "queued" else "queued"
    if facts.is_over:
        if status.state in {*_CLAIMS, "queued", "preempted"}:
            return {"CANCELLED": "cancelled", "TIMEOUT": "timed out", "FAILED": "failed"}.get(facts.state, "died")
        return status.state
    if facts.state == "RUNNING" and status.state in {"queued", "preempted"}:
        return "starting"
    return status.state


def _state_here(run: RunDirectory, *, has_job: bool, is_dead: bool) -> str:
    state = run.read_status().state
    if state == "queued" and not has_job:  # no rank has written a status yet
        return "starting" if run.is_held else "never started"
    return "died" if is_dead else state


def _is_elsewhere(status: Status) -> bool:
    return bool(status.attempts) and status.attempts[-1].host != socket.gethostname()
