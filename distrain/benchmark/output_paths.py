"""Chooses where a measurement writes: the folder of its temporary runs, and its plot."""

from pathlib import Path

from distrain.errors import RunError
from distrain.system.filesystem import check_writable

PICTURES = (".png", ".svg", ".pdf")


def choose_place(root: Path) -> Path:
    """Return the folder of the runs, or the one that it would be made in: checkpoints are measured on that disk.

    Raises `RunError` where nothing can be written there.
    """
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not place.is_dir():
        raise RunError(f"{place} is no folder; name another one with --root")
    check_writable(place, otherwise="name another folder with --root")
    return place


def check_picture(file: Path) -> None:
    """Raise `RunError` where no picture can be written to `file`."""
    if file.suffix.lower() not in PICTURES:
        raise RunError(f"--plot {file} does not say what kind of picture it is; end it with {', '.join(PICTURES)}")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise RunError(f"--plot {file} cannot be written; its folder does not exist, or it is one itself")
    check_writable(file.absolute().parent, otherwise="name a file elsewhere with --plot")
