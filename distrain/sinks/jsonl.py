"""Owns `metrics.jsonl`: one JSON object a line, each step once, also across resumes and while the disk is full."""

import json
import logging
import os

from distrain.rundir import RunDirectory, write_atomically
from distrain.sinks.protocol import Opening, Record

log = logging.getLogger(__name__)


def rewind_metrics(run: RunDirectory, step: int) -> list[Record]:
    """Drop the records of steps after `step`, which will be trained again, and return the ones that stay."""
    records = [record for record in run.read_metrics() if record["step"] <= step]
    write_atomically(run.metrics, "".join(json.dumps(record) + "\n" for record in records))
    return records


class JsonlSink:
    """Appends records to `metrics.jsonl`, each handed to the system before training goes on.

    Lines for which the disk has no room wait in memory and are written, in their order, with a later one.
    """

    def __init__(self, opening: Opening) -> None:
        self._file = opening.run.metrics.open("ab", buffering=0)
        self._size = self._file.tell()  # bytes in whole lines
        self._waiting: list[bytes] = []

    def write(self, record: Record) -> None:
        """Append one line, and those that wait."""
        self._waiting.append(json.dumps(record).encode() + b"\n")
        self._write_waiting()

    def close(self) -> None:
        """Write what waits, if there is room by now, and close the file."""
        if self._waiting:
            self._write_waiting()
        if self._waiting:
            log.warning("%d lines of metrics could not be written to %s", len(self._waiting), self._file.name)
        self._file.close()

    def _write_waiting(self) -> None:
        text = b"".join(self._waiting)
        written = 0
        try:
            while written < len(text):
                written += self._file.write(text[written:])
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._size)  # readers and resumes shall not find half a line
            if len(self._waiting) == 1:
                log.warning("%s: %s; its lines wait in memory for room", self._file.name, error.strerror)
            return
        self._size += len(text)
        self._waiting.clear()
