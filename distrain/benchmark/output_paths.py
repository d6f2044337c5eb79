"""Checks the paths that a measurement writes to: the folder of its temporary runs, and its plot."""

from pathlib import Path

from distrain.errors import RunError
from distrain.system.filesystem import check_writable

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def choose_place(root: Path) -> Path:
    """Return the folder of the runs, or its nearest existing parent: checkpoints are measured on that disk.

    Raises `StorageError` where nothing can be written there.
    """
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    check_writable(place, otherwise="use another folder with --root")
    return place


def check_plot_path(file: Path) -> None:
    """Raise a `UserError` where no plot can be written to `file`."""
    if file.suffix.lower() not in PLOT_SUFFIXES:
        raise RunError(f"--plot {file} has an unknown suffix; use {', '.join(PLOT_SUFFIXES)}")
    if file.is_dir():
        raise RunError(f"--plot {file} is a folder; name a file")
    check_writable(file.absolute().parent, otherwise="name a file elsewhere with --plot")
