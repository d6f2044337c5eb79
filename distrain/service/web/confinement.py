"""Opens files of a run for requests: never through a link, which could lead to any file of the user of `serve`."""

import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from distrain.runs.directory import RunDirectory

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_inside(run: RunDirectory, *names: str) -> IO[bytes]:
    """Open a regular file of a run by the names of its folders and its own, to read bytes.

    Raises `FileNotFoundError` where it is missing, or one of the names is a link or not a plain name.
    """
    with ExitStack() as opened:
        folder = os.open(run.path, _FLAGS | os.O_DIRECTORY)
        opened.callback(os.close, folder)
        try:
            for name in names[:-1]:
                folder = os.open(_plain(name), _FLAGS | os.O_DIRECTORY, dir_fd=folder)
                opened.callback(os.close, folder)
            file = os.fdopen(os.open(_plain(names[-1]), _FLAGS | os.O_NONBLOCK, dir_fd=folder), "rb")
        except OSError as error:
            raise FileNotFoundError(error.errno, "not a file of the run", str(run.path.joinpath(*names))) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device or a pipe, which would block
        file.close()
        raise FileNotFoundError(None, "not a regular file", str(run.path.joinpath(*names)))
    return file


def list_inside(run: RunDirectory, name: str, pattern: str) -> dict[str, int]:
    """Return the sizes in bytes of the regular files in a folder of a run by their names, as `pattern` has them."""
    folder = run.path / name
    if folder.is_symlink() or not folder.is_dir():
        return {}
    found = {path.name: path.lstat() for path in sorted(folder.glob(pattern))}
    return {name: status.st_size for name, status in found.items() if stat.S_ISREG(status.st_mode)}


def _plain(name: str) -> str:
    if name in {"", ".", ".."} or Path(name).name != name or "\0" in name:
        raise FileNotFoundError(None, "not a plain name", name)
    return name
