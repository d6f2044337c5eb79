"""Checks whether a command may write to a path, so that no file of the user is lost."""

from pathlib import Path

from distrain.errors import BundleError
from distrain.system.filesystem import check_writable

_OTHERWISE = "name another path with --out"  # missing folders are created when the file is written


def check_file(path: Path, *, may_replace: bool) -> None:
    """Raise a `UserError` where `path` cannot be written, or exists and may not be replaced."""
    check_writable(path.absolute().parent, otherwise=_OTHERWISE)
    if path.is_dir():
        raise BundleError(f"{path} is a folder; name a file with --out")
    if path.exists() and not may_replace:
        raise BundleError(f"{path} exists; name another file with --out, or replace it with --force")


def check_folder(path: Path, *, may_replace: bool, mark: str) -> None:
    """Raise a `UserError` as `check_file` does; a non-empty folder without the file `mark` is never replaced."""
    check_writable(path.absolute().parent, otherwise=_OTHERWISE)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / mark).is_file()):
        raise BundleError(f"{path} is not a bundle, so it is not replaced; name another folder with --out")
    if path.is_dir() and any(path.iterdir()) and not may_replace:
        raise BundleError(f"{path} exists; name another folder with --out, or replace it with --force")
