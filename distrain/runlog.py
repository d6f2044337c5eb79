"""Writes the log of a run: what is said of it, each line with its time."""

import logging
from contextlib import suppress
from pathlib import Path

_FORMATTER = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


def open_log(path: Path) -> logging.Handler:
    """Return a handler that appends what is logged to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_FORMATTER)
    return handler


def append_to_log(path: Path, text: str) -> None:
    """Append what the launcher has printed, line by line; a log that cannot be written is left as it is."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    records = [logging.LogRecord("distrain.launcher", logging.INFO, "", 0, line, None, None) for line in lines]
    with suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{_FORMATTER.format(record)}\n" for record in records))
