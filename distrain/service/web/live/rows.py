"""Finds the runs of a list that have changed, at a cost that does not grow with the runs that have ended."""

import time
from pathlib import Path
from typing import Any, TypeAlias

from distrain.runs.directory import RunDirectory
from distrain.runs.liveness import LIVE_STATES, WAITING
from distrain.runs.overview import Overview, read_each
from distrain.service.queue import bell
from distrain.service.web.run_list import RunList

Row: TypeAlias = dict[str, Any]

_ACTIVE = {*LIVE_STATES, *WAITING, "requeued", "never started"}
_SHARE = 50  # of the time that a look at all runs takes, that passes between two of them
_SHARE_AFTER_A_CHANGE = 10  # where a run was created or deleted


class RunRows:
    """The rows of a list of runs at the last look."""

    def __init__(self, root: Path, run_list: RunList) -> None:
        self._root = root
        self._run_list = run_list
        self._rows: dict[str, Row] | None = None
        self._bell = 0
        self._looked = 0.0  # when all runs were read, and how long that took
        self._cost_s = 0.0

    def find_changes(self) -> tuple[list[Row], list[str]]:
        """Return the rows that are new or have changed since the last call, and the names of the runs that are gone.

        The first call returns the runs that are not over.
        """
        before = self._rows
        rows = self._read_all() if before is None or self._is_time() else {**before, **self._read_active(before)}
        self._rows = rows
        if before is None:
            return [row for row in rows.values() if row["state"] in _ACTIVE], []
        changed = [row for name, row in rows.items() if before.get(name) != row]
        return changed, [name for name in before if name not in rows]

    def _is_time(self) -> bool:
        share = _SHARE if bell(self._root) == self._bell else _SHARE_AFTER_A_CHANGE
        return time.monotonic() - self._looked >= share * self._cost_s

    def _read_all(self) -> dict[str, Row]:
        self._bell, begun = bell(self._root), time.monotonic()
        rows = {overview.name: as_row(overview) for overview in self._run_list.read()}
        self._looked = time.monotonic()
        self._cost_s = self._looked - begun
        return rows

    def _read_active(self, before: dict[str, Row]) -> dict[str, Row]:
        runs = [RunDirectory(self._root / name) for name, row in before.items() if row["state"] in _ACTIVE]
        return {overview.name: as_row(overview) for overview in read_each([run for run in runs if run.exists])}


def as_row(overview: Overview) -> Row:
    """Return what changes in a list while a run trains."""
    brief = overview.brief
    return {
        "name": overview.name,
        "state": overview.state,
        "step": brief.step,
        "total_steps": brief.total_steps,
        "train_seconds": brief.train_seconds,
        "last": None if brief.last is None else dict(brief.last),
        "best": None if overview.best is None else dict(overview.best),
        "best_by": brief.best_by,
        "tags": overview.labels.tags,
        "note": overview.labels.note,
        "fault": overview.fault,
    }
