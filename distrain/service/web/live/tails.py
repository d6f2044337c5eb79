"""Follows the files of one run: its status, the records of its metrics and the lines of a log."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from distrain.errors import RunError
from distrain.runs.directory import RunDirectory
from distrain.runs.overview import read_each
from distrain.service.web.confinement import open_inside
from distrain.system.files import read_readable

MAX_BYTES = 1 << 18  # that are read at once; a file that grows faster is not followed byte by byte


@dataclass
class Tail:
    """A place in a file that grows."""

    run: RunDirectory
    names: tuple[str, ...]  # of the folders in the run, and of the file
    position: int = 0

    def __post_init__(self) -> None:
        with suppress(OSError), open_inside(self.run, *self.names) as file:
            self.position = file.seek(0, os.SEEK_END)

    def read_lines(self) -> tuple[int, bytes, bool]:
        """Return where the whole lines begin that are new, the lines, and whether others are missing before them."""
        with suppress(OSError), open_inside(self.run, *self.names) as file:
            size, first = file.seek(0, os.SEEK_END), self.position
            if size == first:
                return first, b"", False
            is_cut = size < first or size - first > MAX_BYTES
            if is_cut:
                first = 0 if size <= MAX_BYTES else size - MAX_BYTES
            file.seek(first)
            content = file.read(size - first)
            lines = content[: content.rfind(b"\n") + 1]
            if is_cut and first > 0:  # in the middle of a line
                skipped = lines.find(b"\n") + 1
                first, lines = first + skipped, lines[skipped:]
            self.position = first + len(lines)
            return first, lines, is_cut
        return self.position, b"", False


class RunTail:
    """What has changed in a run since the last look."""

    def __init__(self, run: RunDirectory, log: str) -> None:
        self.run = run
        self.log = log
        self._log = Tail(run, (run.logs.name, log))
        self._metrics = Tail(run, (run.metrics.name,))
        self._summary: dict[str, Any] | None = None

    def find_changes(self) -> list[tuple[str, Any]]:
        """Return events and their data: `status`, `metrics`, `log`, and `reset` where a part of a file was skipped."""
        changes: list[tuple[str, Any]] = []
        name = self.run.path.name
        with suppress(RunError, OSError):
            summary = read_each([self.run])[0].summary()
            if summary != self._summary:
                self._summary = summary
                changes.append(("status", summary))
        _, lines, is_metrics_cut = self._metrics.read_lines()
        if records := read_readable(lines.decode(errors="replace").splitlines(), json.loads):
            changes.append(("metrics", {"run": name, "records": records}))
        first, lines, is_log_cut = self._log.read_lines()
        if lines:
            part = {"first": first, "after": first + len(lines), "text": lines.decode(errors="replace")}
            changes.append(("log", {"run": name, "log": self.log, **part}))
        if is_metrics_cut or is_log_cut:
            changes.insert(0, ("reset", {"run": name}))
        return changes
