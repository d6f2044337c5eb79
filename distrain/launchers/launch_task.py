"""Runs an evaluation or a benchmark in worker processes, and waits for its results."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from distrain.config import Recipe
from distrain.config.profile import Profile
from distrain.errors import DistrainError, ExitCode, RunError, StoppedError, TaskError
from distrain.launchers.plan import Plan
from distrain.launchers.prepare import write_request
from distrain.launchers.supervisor import RunWorker, execute
from distrain.messages import PREFIX
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import ErrorReport
from distrain.runs.task import Task


def launch_task(
    run: RunDirectory,
    recipe: Recipe,
    profile: Profile,
    plan: Plan,
    task: Task,
    *,
    results: Path,
    keeps_logs: bool,
    notify: Callable[[str], None],
    run_worker: RunWorker | None = None,
) -> float:
    """Run the task in its run directory, and return the start time of its processes: seconds since the epoch.

    `results` is the file that a worker writes at the end; an older one is deleted. A new folder is removed after a stop
    and after bad input. Raises `StoppedError` after a stop, `RunError` if a process reports bad input, and `TaskError`
    for the first failure of a process, with the traceback unless `keeps_logs`.
    """
    is_new = not run.exists
    with ExitStack() as locked:
        with run.created():
            locked.enter_context(run.hold_launcher_lock())
            results.unlink(missing_ok=True)
            write_request(run, recipe, profile, plan, task)
        started = time.time()
        outcome = execute(plan, run, profile, run_worker=run_worker, notify=notify)
        if outcome.code == ExitCode.FINISHED and results.exists():
            return started
        failure = _to_exception(run, outcome.errors, keeps_logs=keeps_logs)
        is_stopped = outcome.code == ExitCode.STOPPED
        if is_new and (is_stopped or failure.exit_code == ExitCode.BAD_INPUT):
            run.remove([run.path.parent])
    raise StoppedError if is_stopped else failure


def _to_exception(run: RunDirectory, errors: list[ErrorReport], *, keeps_logs: bool) -> DistrainError:
    if not errors:
        return TaskError(f"the processes ended without an error report: {_last_line(run.launcher_log)}")
    first = errors[0]
    if first["exit_code"] == ExitCode.BAD_INPUT:
        return RunError(str(first["message"]))
    rank, message = int(first["rank"]), str(first["message"])
    if keeps_logs:
        return TaskError(f"rank {rank} failed: {(message.splitlines() or [''])[0]} (log {run.log(rank)})")
    return TaskError(f"rank {rank} failed: {first['type']}: {message}\n{first['traceback'].rstrip()}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix(PREFIX) if lines else "they printed nothing"
