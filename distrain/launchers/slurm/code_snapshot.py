"""Copies the user's code into the run directory, so that the job runs the code that was submitted."""

import shutil
import subprocess
from pathlib import Path

from distrain.errors import LaunchError

MAX_BYTES = 200_000_000


def take_snapshot(folder: Path, into: Path, *, extras: list[Path]) -> int:
    """Copy the current content of the files that git tracks in `folder`, and `extras`; return the number of files.

    Without git, the Python files of the folder and of the packages in it are copied. An extra is a file or a folder
    inside `folder`. Raises `LaunchError` where one is missing, or where the total size exceeds `MAX_BYTES`.
    """
    names = _tracked(folder)
    if names is None:
        names = _python_files(folder)
    for extra in extras:
        names += _extra_files(folder, extra)
    files = [name for name in dict.fromkeys(names) if (folder / name).is_file() or (folder / name).is_symlink()]
    size = sum((folder / name).lstat().st_size for name in files)
    if size > MAX_BYTES:
        raise LaunchError(
            f"the code in {folder} has {size / 1e6:.0f} MB, but a snapshot may have at most {MAX_BYTES / 1e6:.0f} MB; "
            "submit from a folder that contains only the code, or use --no-snapshot"
        )
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for name in files:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / name, into / name, follow_symlinks=False)  # a link to a folder stays a link
    return len(files)


def _tracked(folder: Path) -> list[Path] | None:
    command = ["git", "ls-files", "-z", "--cached", "--recurse-submodules"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return [Path(name) for name in done.stdout.split("\0") if name] if done.returncode == 0 else None


def _python_files(folder: Path) -> list[Path]:
    """Return the modules in a folder and in its packages; other folders may contain anything."""
    packages = [path.parent for path in folder.glob("*/__init__.py")]
    found = [*folder.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))]
    return sorted(path.relative_to(folder) for path in found)


def _extra_files(folder: Path, extra: Path) -> list[Path]:
    path = (folder / extra).absolute()
    if not path.is_relative_to(folder) or not path.exists():
        raise LaunchError(f"--snapshot-extra {extra} is not a file or folder inside {folder}")
    files = [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file())
    return [file.relative_to(folder) for file in files]
