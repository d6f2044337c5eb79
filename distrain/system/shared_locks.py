"""Locks files (flock) in a folder in which every user of this machine may create and delete files of their own.

Links are not followed, and only regular files are locked. A file that exists is opened without O_CREAT, which the
kernel refuses for those of other users (fs.protected_regular). The kernel releases a lock when the process ends,
however that happens. Forks of the process, such as the workers that load data, close the files at once.
"""

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
PROBES_S = 0.05  # another process that looks whether a file is locked locks it for a moment
PAUSE_S = 0.01

_open_files: set[int] = set()


class LeasesUnavailableError(Exception):
    """The folder of leases cannot be used; the message says why, and what to do."""


class LockFileError(LeasesUnavailableError):
    """One file in the folder cannot be locked; the message says why."""


def lock(path: Path, kind: int, *, patience_s: float) -> int | None:
    """Lock a file, created where it is missing, and return its descriptor; pass it to `close`.

    Returns None where another process has it for `patience_s` seconds. Raises `LockFileError` where somebody has made
    the file unusable, and `LeasesUnavailableError` where the file system has no locks.
    """
    deadline = time.monotonic() + patience_s
    while True:
        file = _open(path)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                raise LeasesUnavailableError(f"{path.parent} has no file locks ({error.strerror})") from None
            if time.monotonic() >= deadline:
                return None
            time.sleep(PAUSE_S)
            continue
        if _is_current(path, file):
            _open_files.add(file)
            return file
        os.close(file)  # it was deleted meanwhile, and another one has its name


def is_locked(path: Path, kind: int, *, patience_s: float) -> bool:
    """Whether another process has a lock that conflicts with `kind` for `patience_s` seconds; raises as `lock` does."""
    if not os.path.lexists(path):
        return False
    file = lock(path, kind, patience_s=patience_s)
    if file is not None:
        close(file)
    return file is None


def close(file: int, *, empty: bool = False) -> None:
    """Release a lock, and `empty` the file before; does nothing in a fork of the process that has it."""
    if file in _open_files:
        if empty:
            with suppress(OSError):  # of another user, who lets nobody else write
                os.ftruncate(file, 0)
        _open_files.discard(file)
        os.close(file)


def _open(path: Path) -> int:
    deadline = time.monotonic() + PROBES_S
    while True:
        try:
            file = _open_existing(path)
        except FileNotFoundError:
            _create(path)
        except OSError as error:
            if not isinstance(error, PermissionError) or time.monotonic() >= deadline:
                raise LockFileError(f"{path} cannot be opened ({error.strerror})") from None
            time.sleep(PAUSE_S)  # another user has just created it, and is about to share it
        else:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
                return file
            os.close(file)
            raise LockFileError(f"{path} is not a regular file of its own")


def _open_existing(path: Path) -> int:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_RDWR)
    except PermissionError:  # as flock(1) of another user creates it
        return os.open(path, flags | os.O_RDONLY)


def _create(path: Path) -> None:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except FileExistsError:  # another process was faster
        return
    except OSError as error:
        raise LockFileError(f"{path} cannot be created ({error.strerror})") from None
    os.fchmod(file, 0o666)  # whatever the umask
    os.close(file)


def _is_current(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _close_all() -> None:
    for file in _open_files:
        with suppress(OSError):
            os.close(file)
    _open_files.clear()


os.register_at_fork(after_in_child=_close_all)
