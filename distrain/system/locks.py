"""Locks a file for one process: by a record lock, or by lock files with a heartbeat where the file system has no locks.

Some network file systems have no record locks (Lustre without `-o flock`, NFS without lockd). There the lock `NAME` is
a series of files `NAME.1`, `NAME.2`, ..., each created by one process with O_EXCL, and the newest counts:

1. It is held while its creator lives. On the creator's node the process table shows this. On other nodes the
   heartbeat does: the creator writes to the file every `HEARTBEAT_S` seconds. A file that has not changed for `STALE_S`
   seconds, by the clock of the waiting process, is stale. The clocks of two nodes are never compared.
2. To release the lock, the creator writes so into the file. The file is not deleted: numbers never decrease.
3. A process that finds number N released or stale creates number N + 1. With O_EXCL only one contender succeeds.
4. The new holder deletes files that are `_KEPT` numbers older. A contender that was suspended since it read number N
   may therefore create an old number again; it then checks for a newer number, finds one, and does not hold the lock.
5. A holder that finds a number newer than its own was considered dead (its node was suspended). It ends at once:
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
from distrain.system.files import NotRegularError, open_regular, open_to_append
from distrain.system.filesystem import naming

HEARTBEAT_S = 2.0
STALE_S = 60.0
_PAUSE_S = 0.05  # between two tries
_KEPT = 8
_RECORD_BYTES = 512  # each heartbeat overwrites the whole record in one write
_turns = threading.Condition()
_holders: dict[str, int] = {}  # the thread of this process that holds a lock, by the lock's real path
_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN}
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}

log = logging.getLogger(__name__)


class HeldError(Exception):
    """Another process holds the lock; the message says which."""


@dataclass(frozen=True)
class _Owner:
    """The process that created a lock file."""

    host: str
    pid: int
    started: int  # in clock ticks after boot, because process ids are reused
    space: str  # the boot and the process-id namespace in which `pid` is valid

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class _LockFile:
    """The content of a lock file: `content` or `changed_ns` differ after each heartbeat."""

    number: int
    owner: _Owner | None  # None where it cannot be read: its creator is about to write it, or the disk was full
    is_released: bool
    content: bytes
    changed_ns: int


@contextmanager
def hold(path: Path, *, patience_s: float = 0.0, stale_s: float = STALE_S) -> Iterator[str | None]:
    """Hold the lock `path` while the block runs; raises `HeldError` where it is held for `patience_s`.

    Another process may hold it, or another thread of this one. Yields None, or a note for the user where lock files
    replace a record lock. A record lock is released when the process ends, for whatever reason. Child processes do not
    inherit either kind.
    """
    with _held_in_this_process(path, patience_s), open_to_append(path) as file:
        if _wait_for_record_lock(file, path, patience_s):
            if (owner := _holder_by_file(path)) is not None:  # a node that mounts the file system without locks
                raise HeldError(str(owner))
            with naming(path):
                file.truncate(0)
                os.write(file.fileno(), str(_this_process()).encode())  # a buffer would be written again by the close
            yield None
            return
    with hold_by_files(path, patience_s=patience_s, stale_s=stale_s):
        yield f"{path.parent} has no file locks: {path.name}.N with a heartbeat every {HEARTBEAT_S:.0f} s replaces them"


@contextmanager
def hold_by_files(path: Path, *, patience_s: float = 0.0, stale_s: float = STALE_S) -> Iterator[None]:
    """Hold the lock as `hold` does, but only by lock files."""
    number, file = _acquire(path, patience_s, stale_s)
    over = threading.Event()
    heartbeat = threading.Thread(
        target=_write_heartbeats, args=(path, number, file, over), name="distrain-lock", daemon=True
    )
    heartbeat.start()
    try:
        yield
    finally:
        over.set()
        heartbeat.join()
        _write(file, beat=-1, is_released=True)
        with suppress(OSError):
            os.close(file)


@contextmanager
def _held_in_this_process(path: Path, patience_s: float) -> Iterator[None]:
    """Keep the other threads of this process from the lock.

    To the kernel all threads are one holder, and a record lock is lost when any of them closes the file.
    """
    key = os.path.realpath(path)
    with _turns:
        if not _turns.wait_for(lambda: key not in _holders, timeout=patience_s):
            raise HeldError(str(_this_process()))
        _holders[key] = threading.get_ident()
    try:
        yield
    finally:
        with _turns:
            _holders.pop(key, None)
            _turns.notify_all()


def _forget_holders() -> None:
    """Begin without locks: the child of a fork inherits none."""
    global _turns  # another thread may have held it at the fork
    _turns = threading.Condition()
    _holders.clear()


os.register_at_fork(after_in_child=_forget_holders)


def is_held(path: Path) -> bool:
    """Whether another process or thread holds the lock `path`; only reads, so it does not disturb others."""
    with _turns:  # no thread of this process acquires the lock meanwhile
        if (thread := _holders.get(os.path.realpath(path))) is not None:
            return thread != threading.get_ident()
        return _holder_by_file(path) is not None or (path.exists() and _has_record_lock(path))


def _holder_by_file(path: Path) -> _Owner | None:
    """Return the process that holds the lock by a lock file; None where no process does, or this one.

    For a process on another node, only the age of its heartbeat is known without waiting: it is right if the clocks
    agree.
    """
    newest = _newest(path)
    if newest is None or newest.is_released or newest.owner is None or newest.owner == _this_process():
        return None
    is_fresh = time.time() - newest.changed_ns * 1e-9 < STALE_S
    return newest.owner if _is_alive(newest.owner) or (_is_alive(newest.owner) is None and is_fresh) else None


def _wait_for_record_lock(file: IO[str], path: Path, patience_s: float) -> bool:
    """Acquire the record lock; returns False where the file system has no record locks."""
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
    """Ask the kernel whether a lock is held: trying to acquire it could make another process fail meanwhile."""
    flock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock: type, whence, start, len, pid
    try:
        with open_regular(path) as file:
            (kind, *_) = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, flock))
    except NotRegularError:  # which nobody can have locked
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return bool(kind != fcntl.F_UNLCK)


def _acquire(path: Path, patience_s: float, stale_s: float) -> tuple[int, int]:
    """Create the next lock file once the newest is released, its creator dead or its heartbeat `stale_s` old.

    Returns its number and its descriptor. Raises `HeldError` if the holder shows to be alive after `patience_s`.
    """
    begun = since = time.monotonic()
    seen: _LockFile | None = None
    is_reported = False
    while True:
        newest, now = _newest(path), time.monotonic()
        is_beating = newest is not None and seen is not None and newest.number == seen.number and newest != seen
        since = since if newest == seen else now
        seen = newest
        alive = None if newest is None else _is_alive(newest.owner)
        if newest is None or newest.is_released or alive is False or (alive is None and now - since >= stale_s):
            file = _create(path, 1 if newest is None else newest.number + 1)
            if file is not None:
                return file
            continue  # another contender was faster: read its file
        if now - begun >= patience_s and (alive or is_beating):
            raise HeldError(str(newest.owner or "another process"))
        if alive is None and not is_reported and now - begun > HEARTBEAT_S:
            log.warning("waiting up to %.0f s for a heartbeat of %s, which holds %s", stale_s, newest.owner, path)
            is_reported = True
        time.sleep(_PAUSE_S)


def _create(path: Path, number: int) -> tuple[int, int] | None:
    """Create lock file `number` and return the number and its descriptor; None where it, or a newer one, exists."""
    created = _numbered(path, number)
    try:
        file = os.open(created, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    _write(file, beat=0)
    if max(_numbers(path), default=number) > number:
        os.close(file)
        created.unlink(missing_ok=True)
        return None
    for old in _numbers(path):
        if old <= number - _KEPT:
            with suppress(OSError):
                _numbered(path, old).unlink()
    return number, file


def _write_heartbeats(path: Path, number: int, file: int, over: threading.Event) -> None:
    """Write heartbeats to the lock file until `over`, in a thread; a failed write is repeated at the next one."""
    beat = 0
    while not over.wait(HEARTBEAT_S):
        beat += 1
        _write(file, beat=beat)
        with suppress(OSError):
            if any(other > number for other in _numbers(path)) and not over.is_set():
                _end_superseded(path)


def _end_superseded(path: Path) -> None:
    """End this process, whose lock another process has taken over."""
    message = f"another process has taken over {path.parent}, because this one had written no heartbeat; exiting"
    with suppress(Exception):
        log.error("%s", message)
        print_error(message)
    end_process(ExitCode.FAILED)


def _write(file: int, *, beat: int, is_released: bool = False) -> None:
    """Overwrite the record; where the disk is full, only the file's time shows that the creator lives."""
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
            with open_regular(_numbered(path, number)) as file:  # opening makes a network file system refresh its cache
                content, changed_ns = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:  # a newer one has been created meanwhile
            continue
        except NotRegularError:  # which no process has created as a lock
            content, changed_ns = b"", 0
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
    """Whether the process lives; None where this is not known."""
    if owner is None or owner.space != _space():
        return None
    return _start_of(owner.pid) == owner.started


def _this_process() -> _Owner:
    return _Owner(socket.gethostname(), os.getpid(), _start_of(os.getpid()) or 0, _space())


def _start_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None where it is dead: proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def _space() -> str:
    """Return an identifier of the boot and the process-id namespace, in which process ids are unique."""
    try:
        return f"{boot_id()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"unknown to {socket.gethostname()} {os.getpid()}"


def boot_id() -> str:
    """Return what identifies the boot of this machine; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
