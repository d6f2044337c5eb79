"""Writes the logs of a run, with the time on each line."""

import logging
from contextlib import suppress
from pathlib import Path

from distrain.system.files import PatientFile

_MAX_WAITING = 10_000  # lines
_FORMATTER = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


def open_log(path: Path) -> logging.Handler:
    """Return a handler that appends log records to the file."""
    handler = _LogFile(path)
    handler.setFormatter(_FORMATTER)
    return handler


def append_to_log(path: Path, text: str) -> None:
    """Append what the launcher has printed, line by line; does nothing where the log cannot be written."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    records = [logging.LogRecord("distrain.launcher", logging.INFO, "", 0, line, None, None) for line in lines]
    with suppress(OSError), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(f"{_FORMATTER.format(record)}\n" for record in records))


class _LogFile(logging.Handler):
    """Appends log records to a file; never raises, and never prints a traceback.

    Records that cannot be written wait in memory and are written with a later one.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = PatientFile(path, most_waiting=_MAX_WAITING, is_shared=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Append one record."""
        self._file.append(self.format(record))

    def close(self) -> None:
        """Write the records that wait, if possible."""
        self._file.flush()
        self._file.close()
        super().close()
