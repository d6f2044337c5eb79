"""Checks whether a command may write to a path, so that no file of the user is lost."""

from pathlib import Path

from distrain.errors import BundleError
from distrain.system.filesystem import check_writable, nearest_existing


def check_file(path: Path, *, may_replace: bool) -> None:
    """Raise `BundleError` where `path` cannot be written, or exists and may not be replaced."""
    _check_parent(path)
    if path.is_dir():
        raise BundleError(f"{path} is a folder; name a file with --out")
    if path.exists() and not may_replace:
        raise BundleError(f"{path} exists; name another file with --out, or replace it with --force")


def check_folder(path: Path, *, may_replace: bool, mark: str) -> None:
    """Raise `BundleError` as `check_file` does; a non-empty folder without the file `mark` is never replaced."""
    _check_parent(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / mark).is_file()):
        raise BundleError(f"{path} is not a bundle, so it is not replaced; name another folder with --out")
    if path.is_dir() and any(path.iterdir()) and not may_replace:
        raise BundleError(f"{path} exists; name another folder with --out, or replace it with --force")


def _check_parent(path: Path) -> None:
    """Check the folder of `path`, or the nearest one above it: missing folders are created when it is written."""
    if not (existing := nearest_existing(path.parent)).is_dir():
        raise BundleError(f"{existing} is a file, not a folder; name another path with --out")
    check_writable(path.absolute().parent, otherwise="name another path with --out")
