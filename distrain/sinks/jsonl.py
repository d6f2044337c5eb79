"""Owns `metrics.jsonl`: one JSON object a line, each step once, also across resumes."""

import json

from distrain.rundir import RunDirectory, write_atomically
from distrain.sinks.protocol import Opening, Record


def rewind_metrics(run: RunDirectory, step: int) -> list[Record]:
    """Drop the records of steps after `step`, which will be trained again, and return the ones that stay."""
    records = [record for record in run.read_metrics() if record["step"] <= step]
    write_atomically(run.metrics, "".join(json.dumps(record) + "\n" for record in records))
    return records


class JsonlSink:
    """Appends records to `metrics.jsonl`, each flushed before training goes on."""

    def __init__(self, opening: Opening) -> None:
        self._file = opening.run.metrics.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append one line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
