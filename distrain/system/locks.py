"""Locks a file for one process: by a record lock, or by lock files with a heartbeat where the file system has no locks.

Some network file systems have no record locks (Lustre without `-o flock`, NFS without lockd). There the lock `NAME` is
a series of files `NAME.1`, `NAME.2`, ..., each made by one process with O_EXCL, and the newest counts:

1. It is held while its maker lives. On the maker's own machine the process table says so. Elsewhere the heartbeat does:
   the maker writes to the file every `BEAT_S` seconds, and one that stands still for `STALE_S` seconds, by the clock of
   whoever waits, is stale. The clocks of two machines are never compared.
2. It is released by writing that into it. It is not deleted: numbers never go back.
3. Whoever finds number N released or stale makes number N + 1. O_EXCL lets one of several contenders succeed.
4. The new holder deletes files that are `_KEPT` numbers older. A contender that has slept since it read number N may
   therefore make an old number again; it looks again, finds a newer one, and has not taken the lock.
5. A holder that finds a newer number than its own was taken for dead (its machine was suspended). It ends at once:
   two processes must not write to one run.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from distrain.errors import ExitCode
from distrain.messages import print_error
from distrain.system.exits import end_process

BEAT_S = 2.0
STALE_S = 60.0
_PAUSE_S = 0.05  # between two tries
_KEPT = 8
_RECORD_BYTES = 512  # each beat overwrites the whole record in one write
_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN}
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}

log = logging.getLogger(__name__)


class HeldError(Exception):
    """Another process holds the lock; the message says which."""


@dataclass(frozen=True)
class _Owner:
    """The process that made a lock file."""

    host: str
    pid: int
    started: int  # in clock ticks after the boot: a process id is used again
    space: str  # the boot and the process-id namespace in which `pid` means anything

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class _LockFile:
    """A lock file as it was read: `content` or `changed_ns` differ after each beat."""

    number: int
    owner: _Owner | None  # None where it cannot be read: its maker is about to write it, or the disk was full
    is_released: bool
    content: bytes
    changed_ns: int


@contextmanager
def hold(path: Path, *, patience_s: float = 0.0, stale_s: float = STALE_S) -> Iterator[str | None]:
    """Hold the lock `path` while the block runs; raises `HeldError` where another process holds it for `patience_s`.

    Yields None, or a note for the user where lock files take the place of a record lock. A record lock goes with the
    process, however that dies. Processes that this one starts do not inherit either kind.
    """
    with path.open("a+", encoding="utf-8") as file:
        if _wait_for_record_lock(file, path, patience_s):
            if (owner := _holder_by_file(path)) is not None:  # a machine that mounts the file system without locks
                raise HeldError(str(owner))
            file.truncate(0)
            file.write(str(_this_process()))
            file.flush()
            yield None
            return
    with hold_by_files(path, patience_s=patience_s, stale_s=stale_s):
        yield f"{path.parent} has no file locks: {path.name}.N with a heartbeat every {BEAT_S:.0f} s takes their place"


@contextmanager
def hold_by_files(path: Path, *, patience_s: float = 0.0, stale_s: float = STALE_S) -> Iterator[None]:
    """Hold the lock as `hold` does, by lock files alone."""
    number, file = _take(path, patience_s, stale_s)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, number, file, over), name="distrain-lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        _write(file, beat=-1, is_released=True)
        with suppress(OSError):
            os.close(file)


def is_held(path: Path) -> bool:
    """Whether another process holds the lock `path`; reads only, and disturbs nobody."""
    return _holder_by_file(path) is not None or (path.exists() and _has_record_lock(path))


def _holder_by_file(path: Path) -> _Owner | None:
    """Return the process that holds the lock by a lock file; None where none does, or this one.

    Of a process of another machine, the age of its heartbeat is all that is known at once: right as far as the clocks
    agree.
    """
    newest = _newest(path)
    if newest is None or newest.is_released or newest.owner is None or newest.owner == _this_process():
        return None
    is_fresh = time.time() - newest.changed_ns * 1e-9 < STALE_S
    return newest.owner if _is_alive(newest.owner) or (_is_alive(newest.owner) is None and is_fresh) else None


def _wait_for_record_lock(file: IO[str], path: Path, patience_s: float) -> bool:
    """Take the record lock; returns False where the file system has none."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            if error.errno not in _HELD_BY_ANOTHER:
                error.filename = str(path)
                raise
        else:
            return True
        if time.monotonic() >= deadline:
            file.seek(0)
            raise HeldError(file.read().strip() or "another process")
        time.sleep(_PAUSE_S)


def _has_record_lock(path: Path) -> bool:
    """Ask the kernel who holds a lock; to try it would be to hold it for a moment, and to turn its owner away."""
    question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock: type, whence, start, len, pid
    with path.open("rb") as file:
        try:
            (kind, *_) = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, question))
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise
    return bool(kind != fcntl.F_UNLCK)


def _take(path: Path, patience_s: float, stale_s: float) -> tuple[int, int]:
    """Make the next lock file once the newest is released, its maker dead or its heartbeat still for `stale_s`.

    Returns its number and its descriptor. Raises `HeldError` at the first sign of life after `patience_s`.
    """
    begun = since = time.monotonic()
    seen: _LockFile | None = None
    is_told = False
    while True:
        newest, now = _newest(path), time.monotonic()
        is_beating = newest is not None and seen is not None and newest.number == seen.number and newest != seen
        since = since if newest == seen else now
        seen = newest
        alive = None if newest is None else _is_alive(newest.owner)
        if newest is None or newest.is_released or alive is False or (alive is None and now - since >= stale_s):
            file = _make(path, 1 if newest is None else newest.number + 1)
            if file is not None:
                return file
            continue  # another contender was faster: see what it does
        if now - begun >= patience_s and (alive or is_beating):
            raise HeldError(str(newest.owner or "another process"))
        if alive is None and not is_told and now - begun > BEAT_S:
            log.warning("waits up to %.0f s for a sign of life of %s, which holds %s", stale_s, newest.owner, path)
            is_told = True
        time.sleep(_PAUSE_S)


def _make(path: Path, number: int) -> tuple[int, int] | None:
    """Make lock file `number` and return it with its descriptor; None where it, or a newer one, exists."""
    mine = _numbered(path, number)
    try:
        file = os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    _write(file, beat=0)
    if max(_numbers(path), default=number) > number:
        os.close(file)
        mine.unlink(missing_ok=True)
        return None
    for old in _numbers(path):
        if old <= number - _KEPT:
            with suppress(OSError):
                _numbered(path, old).unlink()
    return number, file


def _beat(path: Path, number: int, file: int, over: threading.Event) -> None:
    """Write to the lock file until the end, in a thread; a write that fails is tried again at the next beat."""
    beat = 0
    while not over.wait(BEAT_S):
        beat += 1
        _write(file, beat=beat)
        with suppress(OSError):
            if any(other > number for other in _numbers(path)) and not over.is_set():
                _end_superseded(path)


def _end_superseded(path: Path) -> None:
    """End this process, whose lock another one has taken."""
    words = f"{path.parent} was taken over by another process, since this one had shown no sign of life; it ends"
    with suppress(Exception):
        log.error("%s", words)
        print_error(words)
    end_process(ExitCode.FAILED)


def _write(file: int, *, beat: int, is_released: bool = False) -> None:
    """Overwrite the record; where the disk takes no more, its time alone says that the maker lives."""
    record = {**asdict(_this_process()), "beat": beat, "is_released": is_released}
    with suppress(OSError):
        try:
            os.pwrite(file, json.dumps(record).encode().ljust(_RECORD_BYTES), 0)
        except OSError:
            os.utime(file)
            raise


def _newest(path: Path) -> _LockFile | None:
    """Read the newest lock file; None where there is none."""
    while (number := max(_numbers(path), default=None)) is not None:
        try:
            with _numbered(path, number).open("rb") as file:  # opening has a network file system look for news
                content, changed_ns = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:  # a newer one has been made meanwhile
            continue
        owner, is_released = _parse(content)
        return _LockFile(number, owner, is_released, content, changed_ns)
    return None


def _parse(content: bytes) -> tuple[_Owner | None, bool]:
    try:
        record = json.loads(content)
        return _Owner(record["host"], record["pid"], record["started"], record["space"]), bool(record["is_released"])
    except (ValueError, KeyError, TypeError):
        return None, False


def _numbers(path: Path) -> list[int]:
    prefix = f"{path.name}."
    try:
        names = [entry.name.removeprefix(prefix) for entry in path.parent.iterdir() if entry.name.startswith(prefix)]
    except FileNotFoundError:
        return []
    return [int(name) for name in names if name.isdecimal()]


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _is_alive(owner: _Owner | None) -> bool | None:
    """Whether the process lives; None where this machine cannot know."""
    if owner is None or owner.space != _space():
        return None
    return _start_of(owner.pid) == owner.started


def _this_process() -> _Owner:
    return _Owner(socket.gethostname(), os.getpid(), _start_of(os.getpid()) or 0, _space())


def _start_of(pid: int) -> int | None:
    """Return when a process began, in clock ticks after the boot; None where it is dead: proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def _space() -> str:
    """Return what tells apart the process ids of two machines, two boots or two containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"unknown to {socket.gethostname()} {os.getpid()}"
