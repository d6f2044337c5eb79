"""Owns what the control plane reads of runs: finding them, and telling a live one from one that died."""

import socket
import time
from pathlib import Path
from typing import Any

from distrain.errors import RunError
from distrain.rundir import RunDirectory, State, Status

SILENT_AFTER_S = 60.0  # a running run writes its status every second; a long save or evaluation may pause it
_ALIVE: tuple[State, ...] = ("starting", "running", "stopping")
_ENDINGS: dict[State, str] = {"stopped": "was stopped", "failed": "failed", "queued": "never began"}
_POLL_S = 0.1


def find_runs(root: Path) -> list[RunDirectory]:
    """Return the runs directly below `root`, the oldest first."""
    if not root.is_dir():
        return []
    runs = [RunDirectory(path) for path in root.iterdir() if path.is_dir()]
    return sorted((run for run in runs if run.exists), key=lambda run: run.recipe.stat().st_ctime)


def find_run(reference: str, root: Path) -> RunDirectory:
    """Find a run by its path, its name below `root`, or the beginning of its name; `last` is the newest.

    Raises `RunError` where none or several match.
    """
    for path in (Path(reference).expanduser(), root / reference):
        if (run := RunDirectory(path)).exists:
            return run
    runs = find_runs(root)
    if reference == "last" and runs:
        return runs[-1]
    matches = [run for run in runs if run.path.name.startswith(reference)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RunError(f"{len(matches)} runs begin with {reference!r}: {', '.join(run.path.name for run in matches)}")
    raise RunError(f"there is no run {reference!r} here or in {root}; `distrain runs` lists them")


def state_in_words(status: Status, *, now: float | None = None) -> str:
    """Return the state, or `died` for a run that claims to be alive and has been silent for too long."""
    silent_s = (time.time() if now is None else now) - status.heartbeat
    return "died" if status.state in _ALIVE and silent_s > SILENT_AFTER_S else status.state


def request_stop(run: RunDirectory) -> None:
    """Ask a run to stop, which it does at its next step; raises `RunError` where nothing trains in it."""
    check_alive(run)
    run.stop.touch()


def check_alive(run: RunDirectory) -> None:
    """Raise `RunError` where nothing trains in the run, with how it ended."""
    if not is_alive(run):
        status = run.read_status()
        state = "finished" if status.state == "finished" else f"not running (it {_ENDINGS.get(status.state, 'died')})"
        advice = "" if status.state == "finished" else f"; `distrain fit --run {run.path}` goes on with it"
        raise RunError(f"run {run.path.name} is {state} at step {status.step} of {status.total_steps}{advice}")


def wait_for_end(run: RunDirectory) -> None:
    """Return once nothing trains in the run any more."""
    while is_alive(run):
        time.sleep(_POLL_S)


def is_alive(run: RunDirectory) -> bool:
    """Whether a run is being trained: by the locks that its processes hold, or on another machine by its heartbeat."""
    status = run.read_status()
    if run.is_held or not status.attempts or status.attempts[-1].host == socket.gethostname():
        return run.is_held
    return status.state in _ALIVE and state_in_words(status) != "died"


def facts(run: RunDirectory) -> dict[str, Any]:
    """Return where a run stands as JSON holds it, for scripts."""
    status = run.read_status()
    return {"run": str(run.path), **status.model_dump(), "state": state_in_words(status)}
