"""Puts runs into the queue of this machine, and takes them out: for the command line, whether `serve` runs or not.

A job of the queue is a run directory whose status says `queued`; `job.json` says what it needs. Nothing else is stored.
"""

import os
import shutil
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from distrain.benchmark import schedule_estimate
from distrain.config import Recipe
from distrain.config.batching import solve_batching
from distrain.config.profile import LaunchOptions, Profile, resolve_profile
from distrain.errors import LaunchError, RunError
from distrain.launchers import LAUNCHERS
from distrain.launchers.extension import is_extended
from distrain.launchers.plan import Plan
from distrain.launchers.prepare import check_data, check_schedule, replace_recipe, resolve_runs, write_request
from distrain.launchers.slurm.code_snapshot import take_snapshot
from distrain.runs import query, slurm
from distrain.runs.directory import RunDirectory
from distrain.runs.liveness import is_alive, is_queued
from distrain.runs.local_job import LocalJob, freeze_environment
from distrain.runs.objects import write_objects
from distrain.runs.pause import Pause, write_pause
from distrain.runs.status import State
from distrain.runs.stop_file import request_stop
from distrain.system import locks
from distrain.system.leases import user_name

_BELL = ".queue"  # in the folder of the runs, touched when `serve` should look at once
_SERVE_LOCK = ".serve-lock"
_MIN_TIME_LIMIT_S = 10.0  # the start of a run, with its imports, takes seconds of it
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """What the jobs need, and their place in the queue."""

    options: LaunchOptions
    root: Path
    priority: int = 0
    after: tuple[str, ...] = ()
    time_limit_s: float | None = None
    requeue: bool = True


@dataclass(frozen=True)
class Submission:
    """A resolved job: nothing is written yet; `notes` are messages on its data."""

    run: RunDirectory
    recipe: Recipe
    profile: Profile
    plan: Plan
    job: LocalJob
    notes: tuple[str, ...]


def resolve(
    *,
    references: list[str],
    tasks: list[str],
    overrides: list[str],
    data: str | None,
    run: Path | None,
    options: QueueOptions,
) -> list[Submission]:
    """Resolve and check a request, a job for each recipe with each of `tasks`; writes nothing.

    Raises a `UserError` for an invalid one.
    """
    root = options.root.absolute()
    after = [query.find_run(reference, root).path for reference in options.after]
    if others := [path for path in after if path.absolute().parent != root]:
        raise RunError(f"--after {others[0]}: a job of the queue can only wait for runs in {root}")
    found = resolve_runs(references, tasks, overrides, data, run, root=root)
    return [_resolve(one, recipe, options, [path.name for path in after]) for one, recipe in found]


def submit(
    submissions: list[Submission],
    *,
    is_snapshot: bool,
    extras: list[Path],
    code: Path | None = None,
    objects: Mapping[str, bytes] = MappingProxyType({}),
    pause: Pause | None = None,
) -> None:
    """Create the run directories with all that their jobs need, `objects` too, and queue them: all, or none.

    The code is a copy of that in the job's folder where `is_snapshot`, else a copy of the folder `code`, if given.
    The runs pause at `pause`.
    """
    with ExitStack() as created:
        for found in submissions:
            is_new = not found.run.exists
            created.enter_context(found.run.created(mode=0o700))  # others have no access before it is complete
            created.enter_context(found.run.hold_launcher_lock())
            if is_snapshot:
                take_snapshot(Path(found.job.cwd), found.run.code, extras=extras)
            else:
                shutil.rmtree(found.run.code, ignore_errors=True)
                if code is not None:
                    shutil.copytree(code, found.run.code, symlinks=True)
            write_objects(found.run, objects)
            write_request(found.run, found.recipe, found.profile, found.plan)
            write_pause(found.run, pause)
            found.run.write_job(found.job)
            _set_state(found.run, "queued")
            _keep_from_others(found.run)
            if is_new:
                found.run.path.chmod(stat.S_IMODE(found.run.logs.stat().st_mode))  # what the umask allows
    ring(submissions[0].run.path.parent)


def read_time_limit(text: str) -> float:
    """Return the seconds of a job's time limit as H:M:S; raises `LaunchError` for another text, and a short one."""
    limit = schedule_estimate.read_time_limit(text)
    if limit < _MIN_TIME_LIMIT_S:
        raise LaunchError(
            f"--time {text} is too short to start a run; give {_MIN_TIME_LIMIT_S:.0f} s or more, as H:M:S"
        )
    return limit


def submit_again(run: RunDirectory, recipe: Recipe | None = None, *, pause: Pause | None = None) -> None:
    """Queue a run as it was submitted before, extended by a `recipe` if one is given; it trains up to `pause`.

    Raises `RunError` where it is queued, running, or has finished and is not extended.
    """
    _check_is_resumable(run, recipe)
    with run.hold_launcher_lock(), run.changed_job() as job:
        if recipe is not None:
            replace_recipe(run, recipe)
        write_pause(run, pause)
        job.queued_at, job.not_before, job.deaths, job.fault = time.time(), 0.0, 0, ""
        job.is_first = False
        _set_state(run, "queued")
    ring(run.path.parent)


def withdraw(run: RunDirectory, state: State) -> bool:
    """Take a job that waits out of the queue; returns whether it was waiting."""
    if not is_queued(run) or is_alive(run):
        return False
    run.check_writable(otherwise="ask its owner")
    with run.hold_launcher_lock(), run.changed_job() as job:
        job.starts += 1  # a launcher that is just starting gives up
        _set_state(run, state)
    ring(run.path.parent)
    return True


def stop(run: RunDirectory) -> str | None:
    """Request a run to stop, or take it out of its queue; returns what was done then, None for a run that trains."""
    if withdraw(run, "stopped"):
        return f"took {run.path.name} out of the queue"
    job_id = query.request_stop(run)
    return None if job_id is None else f"cancelled job {job_id}, which was not training"


def cancel(run: RunDirectory) -> bool:
    """Cancel a run, with a save where it trains: it is not resumed by itself. Returns whether it waited in a queue.

    Raises `RunError` where it has ended already.
    """
    if withdraw(run, "cancelled"):
        return True
    if not is_alive(run) and run.read_job() is not None:
        if query.request_stop(run) is not None:
            _set_state(run, "cancelled")
            return True
        return False
    query.check_alive(run)
    run.check_writable(otherwise="ask its owner to cancel it")
    request_stop(run, "cancelled")
    return False


def set_priority(run: RunDirectory, priority: int) -> None:
    """Change the priority of a job in the queue of this machine, or of SLURM; raises `RunError` where it has none."""
    if (job := run.read_job()) is not None:
        slurm.set_priority(job.id, priority)
        return
    if run.read_local_job() is None:
        raise RunError(f"run {run.path.name} is in no queue; `distrain submit --run {run.path}` puts it there")
    run.check_writable(otherwise="ask its owner")
    if not (is_queued(run) or is_alive(run)):
        raise RunError(f"{query.describe_end(run)}; only a run that waits or runs has a priority")
    with run.changed_job() as local:
        local.priority = priority
    ring(run.path.parent)


def ring(root: Path) -> None:
    """Let `serve` look at the queue at once."""
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(root / _BELL, flags, 0o666)
        try:
            os.utime(file)
        finally:
            os.close(file)


def bell(root: Path) -> int:
    """Return a number that changes when `ring` is called, or a run is created in `root`."""
    times = [path.stat().st_mtime_ns for path in (root, root / _BELL) if path.exists()]
    return max(times, default=0)


def is_served(root: Path) -> bool:
    """Whether a `serve` of this machine runs the jobs in `root`."""
    return locks.is_held(serve_lock(root))


def serve_lock(root: Path) -> Path:
    """Return the lock that the `serve` of the runs in `root` holds."""
    return root / _SERVE_LOCK


def find_owner_fault(run: RunDirectory) -> str | None:
    """Return why `serve` must not start a run: another user owns it, or could have changed it."""
    folders = (run.path, run.code, run.objects, run.logs, run.errors, run.heartbeats, run.checkpoints)
    for path in (*folders, run.job, run.recipe, run.profile, run.plan, run.status):
        with suppress(FileNotFoundError):
            status = path.lstat()
            if status.st_uid != os.geteuid():
                return f"{path} belongs to {user_name(status.st_uid)}"
            if stat.S_ISLNK(status.st_mode) or status.st_mode & _OTHERS_WRITE:
                return f"other users can write to {path}; chmod go-w would keep them from it"
    return None


def _resolve(run: RunDirectory, recipe: Recipe, options: QueueOptions, after: list[str]) -> Submission:
    root, train = options.root.absolute(), recipe.train
    if run.path.parent != root:
        raise RunError(f"--run {run.path}: the queue of {root} has the runs in that folder only; name one there")
    if run.exists:
        _check_is_resumable(run, recipe)
    profile = resolve_profile(
        options.options,
        threads=train.threads or (1 if train.exact else None),
        in_one_process=recipe.parallel.strategy == "dp",
        recipe=recipe.name,
    )
    if profile.nodes > 1 or profile.launcher == "slurm":
        raise LaunchError("the queue of this machine runs jobs on this machine only; submit this one to SLURM")
    solve_batching(recipe.data.batch_size, train.micro_batch_size, profile.world_size, is_exact=train.exact)
    notes = check_data(recipe)
    if not run.exists or is_extended(run, recipe):
        check_schedule(recipe)
    now = time.time()
    job = LocalJob(
        kind="gpu" if profile.device == "cuda" else "cpu",
        devices=profile.processes * profile.devices,
        priority=options.priority,
        submitted_at=now,
        queued_at=now,
        submitted_by=user_name(os.getuid()),
        after=after,
        time_limit_s=options.time_limit_s,
        requeue=options.requeue,
        python=sys.executable,
        cwd=str(Path.cwd()),
        env=freeze_environment(dict(os.environ)),
    )
    return Submission(run, recipe, profile, LAUNCHERS[profile.launcher](profile, run.path), job, tuple(notes))


def _keep_from_others(run: RunDirectory) -> None:
    """Take the permission to write to what is in a run from other users: `serve` starts nothing that they can change.

    The umask, which is that of all threads of the process, stays as it is.
    """
    for folder, folders, files in os.walk(run.path):
        for path in [Path(folder, name) for name in (*folders, *files)]:
            status = path.lstat()
            is_open = status.st_mode & _OTHERS_WRITE and not stat.S_ISLNK(status.st_mode)
            if is_open and status.st_uid == os.geteuid():
                path.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)


def _check_is_resumable(run: RunDirectory, recipe: Recipe | None) -> None:
    """Raise `RunError` where a run runs, waits in the queue, or has finished and `recipe` does not extend it."""
    if is_alive(run):
        raise RunError(f"run {run.path.name} is running; `distrain stop {run.path}` ends it first")
    if is_queued(run):
        raise RunError(f"run {run.path.name} is in the queue already; `distrain cancel {run.path}` takes it out")
    if run.read_status().state == "finished" and (recipe is None or not is_extended(run, recipe)):
        raise RunError(f"run {run.path.name} has already finished; {query.describe_continuations(run)}")


def _set_state(run: RunDirectory, state: State) -> None:
    status = run.read_status()
    status.close(state)
    run.write_status(status)
