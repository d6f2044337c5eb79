"""Owns what the control plane reads of runs: finding them, and telling a live one from one that died."""

import time
from pathlib import Path
from typing import Any

from distrain.errors import RunError
from distrain.rundir import RunDirectory, State, Status

SILENT_AFTER_S = 60.0  # a running run writes its status every second; a long save or evaluation may pause it


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
    alive: tuple[State, ...] = ("starting", "running", "stopping")
    silent_s = (time.time() if now is None else now) - status.heartbeat
    return "died" if status.state in alive and silent_s > SILENT_AFTER_S else status.state


def facts(run: RunDirectory) -> dict[str, Any]:
    """Return where a run stands as JSON holds it, for scripts."""
    status = run.read_status()
    return {"run": str(run.path), **status.model_dump(), "state": state_in_words(status)}
