"""Defines the version of a run directory's format, and the names that its files had in earlier versions."""

import json
from contextlib import suppress
from pathlib import Path

from distrain.errors import RunError
from distrain.system.files import read_regular

FORMAT_VERSION = 1  # in status.json, written with it; a directory without one has version 0, and is read as well
OLD_NAMES = {"examination.json": "task.json", "meeting.json": "rendezvous.json"}  # old name: new name


def check_format(status: Path) -> None:
    """Raise `RunError` where `status.json` has the format version of a newer distrain.

    A file that is missing or damaged passes: code that needs more of it reports that.
    """
    version = 0
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        version = int(json.loads(read_regular(status))["format_version"])
    if version > FORMAT_VERSION:
        raise RunError(
            f"run directory {status.parent} has format version {version}, and this distrain reads versions up to "
            f"{FORMAT_VERSION}; update distrain, or use the one that wrote it"
        )


def find_file(path: Path) -> Path:
    """Return the path under which a file of a run is read: its old name where only a file of that name exists."""
    names = [path.name, *(old for old, new in OLD_NAMES.items() if new == path.name)]
    return next((found for name in names if (found := path.with_name(name)).exists()), path)
