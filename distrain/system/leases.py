"""Leases the devices of this machine to runs, by locks on files that all of its users share.

The device `ID`, a GPU by its UUID or a slot of the CPU such as `cpu-0`, has these files in the folder of leases:

- `ID.lock`: the launcher of a run has an exclusive lock (flock) on it while the run has the device. What the file
  contains, who holds it, is shown to people and decides nothing.
- `ID.ranks`: each rank has a shared lock on it. When a launcher is killed, its ranks keep the device until the last of
  them has ended. They open the file themselves, because accelerate and torchrun close inherited files.
- `ID.drained`: exists while the device is out of service; its owner is the user who drained it.
- `choice.lock`: a launcher has an exclusive lock on it while it chooses its devices.

The kernel releases a lock with the process that holds it, however that ends (`shared_locks.py`). The program
`flock /run/lock/distrain/ID.lock PROGRAM` keeps distrain off a device as well. Anyone may write into the files, so a
record that makes no sense is ignored.
"""

import json
import os
import pwd
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from distrain.errors import LaunchError, StorageError
from distrain.messages import escape_control_characters
from distrain.system.locks import boot_id
from distrain.system.shared_locks import (
    EXCLUSIVE,
    PAUSE_S,
    PROBES_S,
    SHARED,
    LeasesUnavailableError,
    LockFileError,
    close,
    is_locked,
    lock,
)

LOCK_DIR = "DISTRAIN_LOCK_DIR"  # names the folder of leases; empty, nothing is leased
LEASED = "DISTRAIN_LEASED"  # the devices of this rank's run, set by its launcher
ASSIGNED = "DISTRAIN_DEVICES"  # the devices that the queue has chosen for a launcher
_DEFAULT = Path("/run/lock/distrain")
_MODE = 0o1777  # as /tmp: all may create files, and only their owners delete them
_CHOICE = "choice.lock"
_CHOICE_S = 10.0  # where the driver takes seconds to start, so does a choice
_RANK_S = 5.0

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Holder:
    """Who has a device, as its lock file says."""

    run: str = ""  # the path of the run
    user: str = ""
    pid: int = 0  # the launcher
    host: str = ""
    since: float = 0.0  # in seconds since the epoch
    boot: str = ""

    def __str__(self) -> str:
        if not self.run:
            return "another program"
        return escape_control_characters(f"run {Path(self.run).name} of {self.user} since {_clock(self.since)}")


@dataclass(frozen=True)
class Drain:
    """Why a device is out of service."""

    reason: str
    user: str
    since: float

    def __str__(self) -> str:
        because = f": {escape_control_characters(self.reason)}" if self.reason else ""
        return f"drained by {self.user} at {_clock(self.since)}{because}"


class Lease:
    """The lock on one device, held by this process until `release`, or until the process ends."""

    def __init__(self, device: str, file: int) -> None:
        self.device = device
        self._file = file

    def release(self) -> None:
        """Give the device back."""
        close(self._file, empty=True)


class LeaseFolder:
    """The folder of leases, which exists and can be shared."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Let one launcher at a time choose its devices: of two, each could lease some of those that both need.

        The block also runs where another process does not release the lock: a lease alone excludes all others.
        """
        file = None
        with suppress(LeasesUnavailableError):
            file = lock(self._path(_CHOICE), EXCLUSIVE, patience_s=_CHOICE_S)
        try:
            yield
        finally:
            if file is not None:
                close(file)

    def acquire(self, device: str, run: Path) -> Lease | None:
        """Lease a device for the launcher of `run`; returns None where another run has it.

        Raises `LockFileError` where somebody has made its file unusable.
        """
        file = lock(self._path(f"{device}.lock"), EXCLUSIVE, patience_s=PROBES_S)
        if file is None:
            return None
        try:
            if self._is_shared(device):  # a killed launcher's ranks are still there
                close(file)
                return None
        except LockFileError:
            close(file)
            raise
        holder = Holder(str(run), user_name(os.getuid()), os.getpid(), socket.gethostname(), time.time(), boot_id())
        with suppress(OSError):  # a full disk, or a file that another user lets nobody else write
            _write(file, asdict(holder))
        return Lease(device, file)

    def find_holder(self, device: str) -> Holder | None:
        """Return who has a device; None where it is free. Raises `LockFileError` as `acquire` does."""
        if not is_locked(self._path(f"{device}.lock"), SHARED, patience_s=0.0) and not self._is_shared(device):
            return None
        record = _read(self._path(f"{device}.lock"))
        known = {name: record[name] for name, value in vars(Holder()).items() if type(record.get(name)) is type(value)}
        holder = Holder(**known)
        return holder if holder.boot == boot_id() else Holder()  # empty, old, or of another program

    def share(self, devices: Iterable[str]) -> None:
        """Keep devices leased while this process, a rank, lives; the launcher has leased them."""
        for device in devices:
            with suppress(LockFileError):
                lock(self._path(f"{device}.ranks"), SHARED, patience_s=_RANK_S)

    def drain(self, device: str, reason: str) -> None:
        """Take a device out of service, unless it is; a run that has it keeps it."""
        with suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(self._path(f"{device}.drained"), flags, 0o644)
            try:
                os.fchmod(file, 0o644)  # whatever the umask
                _write(file, {"reason": reason})
            finally:
                os.close(file)

    def undrain(self, device: str) -> bool:
        """Return a device to service; returns whether it was drained. Raises `StorageError` for one of another user."""
        path = self._path(f"{device}.drained")
        try:
            owner = path.lstat().st_uid
        except FileNotFoundError:
            return False
        if os.geteuid() not in {0, owner}:  # who owns the folder may delete the files of others, and does not
            drain = self.find_drain(device)
            raise StorageError(f"{device} was {drain}; only that user and root can return it to service")
        path.unlink(missing_ok=True)
        return True

    def find_drain(self, device: str) -> Drain | None:
        """Return why a device is out of service; None where it is not."""
        path = self._path(f"{device}.drained")
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        reason = _read(path).get("reason")
        return Drain(reason if isinstance(reason, str) else "", user_name(status.st_uid), status.st_mtime)

    def check_locks(self) -> None:
        """Raise `LeasesUnavailableError` where the file system of the folder has no locks."""
        with suppress(LockFileError):
            if (file := lock(self._path(_CHOICE), SHARED, patience_s=0.0)) is not None:
                close(file)

    def _path(self, name: str) -> Path:
        return self.path / name.replace("/", "-")  # old drivers name MIG devices MIG-GPU-UUID/1/0

    def _is_shared(self, device: str) -> bool:
        """Whether a rank has the device; others that look at the same time lock its file for a moment."""
        return is_locked(self._path(f"{device}.ranks"), EXCLUSIVE, patience_s=PROBES_S)


def open_leases() -> LeaseFolder | None:
    """Return the folder of leases, created where it is missing; None where leases are turned off.

    Raises `LeasesUnavailableError` where this user cannot share a folder with the others.
    """
    named = os.environ.get(LOCK_DIR)
    if named == "":
        return None
    path = _DEFAULT if named is None else Path(named)
    if not path.is_absolute():
        raise LaunchError(f"{LOCK_DIR}={named} must be an absolute path, the same for all users of this machine")
    try:
        with suppress(FileExistsError):
            path.mkdir()
            path.chmod(_MODE)
        status, deadline = path.lstat(), time.monotonic() + PROBES_S
    except OSError as error:
        raise LeasesUnavailableError(f"{path} cannot be created ({error.strerror}); {_advice(path)}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise LeasesUnavailableError(f"{path} is not a folder; {_advice(path)}")
    while not os.access(path, os.W_OK | os.X_OK):
        if time.monotonic() >= deadline:
            raise LeasesUnavailableError(f"{path} belongs to another user and is not shared; {_advice(path)}")
        time.sleep(PAUSE_S)  # another user has just created it, and is about to share it
    folder = LeaseFolder(path)
    folder.check_locks()
    return folder


def share_leases() -> None:
    """Keep the devices of this rank's run leased while this process lives: called in each rank that is a child."""
    if devices := os.environ.get(LEASED):
        with suppress(LeasesUnavailableError):
            if (folder := open_leases()) is not None:
                folder.share(devices.split(","))


def assigned_devices() -> list[str]:
    """Return the devices that the queue has chosen for this launcher; empty where it may choose."""
    return [name for name in os.environ.get(ASSIGNED, "").split(",") if name]


def user_name(uid: int) -> str:
    """Return the name of a user, or the number where it has none, as in some containers."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _advice(path: Path) -> str:
    return f"an administrator can share it by `install -d -m 1777 {path}`, or {LOCK_DIR} names another folder"


def _clock(seconds: float) -> str:
    try:
        then = time.localtime(seconds)
    except (OverflowError, ValueError, OSError):  # what any user can write into a file
        return "an unknown time"
    return time.strftime("%H:%M" if then[:3] == time.localtime()[:3] else "%F %H:%M", then)


def _write(file: int, record: Record) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(record).encode(), 0)


def _read(path: Path) -> Record:
    """Return the record in a file; empty where it cannot be read as one."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(file, encoding="utf-8", errors="replace") as text:
            record = json.loads(text.read(4096))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
