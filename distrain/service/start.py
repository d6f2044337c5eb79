"""Starts runs for the command line and for Python: writes the run directory, and starts a launcher in the background.

`distrain fit` supervises the processes itself; a launcher in the background is the same command, without a terminal.
"""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from distrain.config import Recipe
from distrain.errors import ExitCode, LaunchError
from distrain.launchers.fit_request import ResolvedFit
from distrain.launchers.prepare import write_request
from distrain.launchers.slurm import submit
from distrain.runs.directory import RunDirectory
from distrain.runs.objects import write_objects
from distrain.runs.pause import write_pause
from distrain.service import queue
from distrain.service.devices import lease_devices
from distrain.service.launch import check_start, is_from_queue, start_launcher
from distrain.system.signals import StopRequest

_POLL_S = 0.05


@contextmanager
def write_run(fit: ResolvedFit, stop: StopRequest) -> Iterator[tuple[bool, list[str]]]:
    """Write the run directory and hold the launcher's lock during the block.

    Yields whether the run is new, and notes for the user. Leaves nothing behind where the run cannot start.
    """
    run = fit.run
    with ExitStack() as locked:
        is_new = not run.exists
        with run.created():
            note = locked.enter_context(run.hold_launcher_lock())
            check_start(run)
            write_objects(run, fit.objects)
            write_request(run, fit.recipe, fit.profile, fit.plan, keeps_stop=is_from_queue())
            if not is_from_queue() and fit.profile.launcher != "slurm":
                write_pause(run, None)  # a trial of a sweep that the user trains on
            if stop.is_set():
                run.stop.touch()  # `write_request` has deleted it as that of an earlier attempt
        yield is_new, fit.notes if note is None else [note, *fit.notes]


def check_background(fit: ResolvedFit, *, wait: bool, advice: str) -> None:
    """Raise `LaunchError` where the run cannot start in the background, or too few devices are free without a wait.

    `advice` is for a run that is not on this machine alone.
    """
    if fit.spans_nodes or fit.profile.launcher == "slurm":
        raise LaunchError(advice)
    if not wait:
        with lease_devices(fit.profile, fit.run.path, wait=False, is_over=lambda: False, notify=lambda _: None):
            pass  # the launcher in the background leases them again, and prints the notes


def start_in_background(fit: ResolvedFit, *, wait: bool) -> subprocess.Popen[bytes]:
    """Start the launcher of a run whose directory is written; with `wait`, it waits for devices."""
    return start_launcher(fit.run, fit.profile, ["--wait"] if wait else [])


def await_launcher(run: RunDirectory, process: "subprocess.Popen[bytes]", *, wait: bool = False) -> ExitCode | None:
    """Return once the launcher has begun with the run, or with `wait` waits for devices: None, or how it ended before.

    Then `last_sentence` says why.
    """
    while not run.is_held:
        if (code := process.poll()) is not None:
            if code == ExitCode.FINISHED:
                return None
            return ExitCode(code) if code in set(ExitCode) else ExitCode.FAILED
        if wait and _is_waiting(run):
            return None
        time.sleep(_POLL_S)
    return None


def submit_again(run: RunDirectory, recipe: Recipe | None = None) -> str | None:
    """Submit a run again to the queue in which it was, extended by a `recipe` if one is given.

    Returns the id of its SLURM job, or an empty string; None for a run that was in no queue.
    """
    if run.read_local_job() is not None:
        queue.submit_again(run, recipe)
        return ""
    return submit.submit_again(run, recipe) if run.read_job() is not None else None


def _is_waiting(run: RunDirectory) -> bool:
    lines = run.console_log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1:] != [] and lines[-1].startswith("waiting: ")
