"""Reads the list of runs for all requests that need it at the same time."""

import gc
import threading
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from distrain.runs.index import RunMemory
from distrain.runs.overview import Overview, read_overviews


class RunList:
    """The runs of one folder; requests that come together share one read, and between requests nothing is read."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._turn = threading.Lock()
        self._begun = 0  # how many reads have begun
        self._newest = 0  # the number of the newest read that has ended
        self._found: list[Overview] = []
        self._memory: RunMemory | None = None

    def read(self) -> list[Overview]:
        """Return the runs, the oldest first, from a read that begins after this call."""
        begun_before = self._begun
        with self._turn:
            if self._newest <= begun_before:
                self._begun += 1
                self._found, self._newest = self._read_all(), self._begun
            return self._found

    def _read_all(self) -> list[Overview]:
        if self._memory is not None:
            return read_overviews(self._root, self._memory)
        self._memory = RunMemory(self._root)
        was_enabled = gc.isenabled()
        gc.disable()  # the search for cycles among thousands of runs would take as long as to read them
        try:
            found = read_overviews(self._root, self._memory)
            gc.freeze()  # nor are they searched later
        finally:
            if was_enabled:
                gc.enable()
        return found


def _run_list(request: Request) -> RunList:
    run_list: RunList = request.app.state.run_list
    return run_list


TheRunList = Annotated[RunList, Depends(_run_list)]
