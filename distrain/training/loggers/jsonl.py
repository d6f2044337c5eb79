"""Writes `metrics.jsonl`: one JSON object per line, one line per recorded step, across resumes and full disks."""

import json
import logging
import os
from contextlib import suppress

from distrain.messages import counted
from distrain.runs.directory import RunDirectory
from distrain.system.files import PatientFile, read_readable, strict_json, write_atomically
from distrain.training.loggers.protocol import LoggerContext, Record

log = logging.getLogger(__name__)


def rewind_metrics(run: RunDirectory, step: int) -> list[Record]:
    """Drop the records of steps after `step`, which will be trained again, and return the ones that stay."""
    everything = run.read_metrics()
    records = [record for record in everything if record["step"] <= step]
    text = "".join(strict_json(record) + "\n" for record in records)
    try:
        if not run.metrics.exists() or run.metrics.read_bytes() != text.encode():
            write_atomically(run.metrics, text)
    except OSError as error:
        _cut(run, step, error)
    return records


def _cut(run: RunDirectory, step: int, refusal: OSError) -> None:
    """Cut the file off before the first record after `step`, for which a full disk has room."""
    log.warning("%s could not be written again: %s; it is cut off instead", run.metrics, refusal.strerror)
    length = 0
    with suppress(OSError):
        for line in run.metrics.read_bytes().splitlines(keepends=True):
            found = read_readable([line.decode(errors="replace")], json.loads)
            if not line.endswith(b"}\n") or (found and found[0]["step"] > step):
                break
            length += len(line)
        os.truncate(run.metrics, length)


class JsonlLogger:
    """Appends records to `metrics.jsonl`, each handed to the system before training continues.

    Lines for which the disk has no room wait in memory and are written, in their order, with a later one.
    """

    def __init__(self, context: LoggerContext) -> None:
        self._file = PatientFile(context.run.metrics)
        self._is_behind = False

    def write(self, record: Record) -> None:
        """Append one line, and those that wait."""
        error = self._file.append(strict_json(record))
        if error is not None and not self._is_behind:
            log.warning("%s: %s; its lines wait in memory for room", self._file.path, error.strerror)
        self._is_behind = error is not None

    def close(self) -> None:
        """Write the lines that wait, if there is room by now, and close the file."""
        self._file.flush()
        if self._file.num_waiting:
            lines = counted(self._file.num_waiting, "line")
            log.warning("%s of metrics could not be written to %s", lines, self._file.path)
        self._file.close()
