"""Leases the devices of this machine to runs, by locks on files that all of its users share.

The device `ID`, a GPU by its UUID or a slot of the CPU such as `cpu-0`, has these files in the folder of leases:

- `ID.lock`: the launcher of a run has an exclusive lock (flock) on it while the run has the device. What the file
  contains, who holds it, is shown to people and decides nothing.
- `ID.ranks`: each rank has a shared lock on it. When a launcher is killed, its ranks keep the device until the last of
  them has ended. They open the file themselves, because accelerate and torchrun close inherited files.
- `ID.drained`: exists while the device is out of service.

The kernel releases a lock with the process that holds it, however that ends. Forks of the process, such as the workers
that load data, close the files at once. `flock /run/lock/distrain/ID.lock PROGRAM` keeps distrain off a device as well.

Anyone may create files in the folder. Links are therefore not followed, only regular files are locked, and a file that
exists is opened without O_CREAT, which the kernel refuses for those of other users (fs.protected_regular).
"""

import errno
import fcntl
import json
import os
import pwd
import socket
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distrain.errors import LaunchError, StorageError
from distrain.system.locks import boot_id

LOCK_DIR = "DISTRAIN_LOCK_DIR"  # names the folder of leases; empty, nothing is leased
LEASED = "DISTRAIN_LEASED"  # the devices of this rank's run, set by its launcher
ASSIGNED = "DISTRAIN_DEVICES"  # the devices that the queue has chosen for a launcher
_DEFAULT = Path("/run/lock/distrain")
_SHARED = 0o1777  # as /tmp: all may create files, and only their owners delete them
_PROBES_S = 0.05  # another process that looks whether a device is free locks it for a moment
_RANK_S = 5.0
_PAUSE_S = 0.01

_open_files: set[int] = set()


class LeasesUnavailableError(Exception):
    """The folder of leases cannot be used; the message says why, and what to do."""


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
        return f"run {Path(self.run).name} of {self.user} since {_clock(self.since)}"


@dataclass(frozen=True)
class Drain:
    """Why a device is out of service."""

    reason: str
    user: str
    since: float

    def __str__(self) -> str:
        return f"drained by {self.user} at {_clock(self.since)}{f': {self.reason}' if self.reason else ''}"


class Lease:
    """The lock on one device, held by this process until `release`, or until the process ends."""

    def __init__(self, device: str, file: int) -> None:
        self.device = device
        self._file = file

    def release(self) -> None:
        """Give the device back."""
        if self._file in _open_files:
            with suppress(OSError):
                os.ftruncate(self._file, 0)
            _close(self._file)


class LeaseFolder:
    """The folder of leases, which exists and can be shared."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self, device: str, run: Path) -> Lease | None:
        """Lease a device for the launcher of `run`; returns None where another run has it."""
        file = self._lock(f"{device}.lock", fcntl.LOCK_EX, patience_s=_PROBES_S)
        if file is None:
            return None
        if self._is_locked(f"{device}.ranks", fcntl.LOCK_EX):  # a killed launcher's ranks are still there
            _close(file)
            return None
        holder = Holder(str(run), user_name(os.getuid()), os.getpid(), socket.gethostname(), time.time(), boot_id())
        with suppress(OSError):  # a full disk: the lock is held all the same
            _write(file, asdict(holder))
        return Lease(device, file)

    def find_holder(self, device: str) -> Holder | None:
        """Return who has a device; None where it is free."""
        if not self._is_locked(f"{device}.lock", fcntl.LOCK_SH) and not self._is_locked(
            f"{device}.ranks", fcntl.LOCK_EX
        ):
            return None
        record = _read(self.path / f"{device}.lock")
        try:
            holder = Holder(**record)
        except TypeError:  # empty, or of another program
            return Holder()
        return holder if holder.boot == boot_id() else Holder()

    def share(self, devices: Iterable[str]) -> None:
        """Keep devices leased while this process, a rank, lives; the launcher has leased them."""
        for device in devices:
            self._lock(f"{device}.ranks", fcntl.LOCK_SH, patience_s=_RANK_S)

    def drain(self, device: str, reason: str) -> None:
        """Take a device out of service; a run that has it keeps it."""
        path = self.path / f"{device}.drained"
        with suppress(FileExistsError):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                _write(file, asdict(Drain(reason, user_name(os.getuid()), time.time())))
            finally:
                os.close(file)

    def undrain(self, device: str) -> bool:
        """Return a device to service; returns whether it was drained. Raises `StorageError` for one of another user."""
        try:
            (self.path / f"{device}.drained").unlink()
        except FileNotFoundError:
            return False
        except PermissionError:
            drain = self.find_drain(device)
            raise StorageError(f"{device} was {drain}; only that user and root can return it to service") from None
        return True

    def find_drain(self, device: str) -> Drain | None:
        """Return why a device is out of service; None where it is not."""
        path = self.path / f"{device}.drained"
        if not os.path.lexists(path):
            return None
        try:
            return Drain(**_read(path))
        except TypeError:
            return Drain("", "another user", path.lstat().st_mtime)

    def _lock(self, name: str, kind: int, *, patience_s: float) -> int | None:
        """Lock a file and return its descriptor; None where another process has it for `patience_s`."""
        deadline = time.monotonic() + patience_s
        while True:
            file = self._open(name)
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except OSError as error:
                os.close(file)
                if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                    raise LeasesUnavailableError(f"{self.path} has no file locks ({error.strerror})") from None
                if time.monotonic() >= deadline:
                    return None
                time.sleep(_PAUSE_S)
                continue
            if self._is_current(name, file):
                _open_files.add(file)
                return file
            os.close(file)  # it was deleted meanwhile, and another one has its name

    def _is_locked(self, name: str, kind: int) -> bool:
        """Whether another process has a lock that conflicts with `kind`."""
        if not os.path.lexists(self.path / name):
            return False
        file = self._lock(name, kind, patience_s=0.0)
        if file is not None:
            _close(file)
        return file is None

    def _open(self, name: str) -> int:
        path, deadline = self.path / name, time.monotonic() + _PROBES_S
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        while True:
            try:
                file = os.open(path, flags)
            except FileNotFoundError:
                with suppress(FileExistsError):  # another process was faster
                    created = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                    os.fchmod(created, 0o666)  # whatever the umask
                    os.close(created)
                continue
            except OSError as error:
                if isinstance(error, PermissionError) and time.monotonic() < deadline:
                    time.sleep(_PAUSE_S)  # another user has just created it, and is about to share it
                    continue
                raise LeasesUnavailableError(f"{path} cannot be opened ({error.strerror})") from None
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                os.close(file)
                raise LeasesUnavailableError(f"{path} is not a regular file")
            return file

    def _is_current(self, name: str, file: int) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path / name), os.fstat(file))
        except FileNotFoundError:
            return False


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
            path.chmod(_SHARED)
        status = path.lstat()
    except OSError as error:
        raise LeasesUnavailableError(f"{path} cannot be created ({error.strerror}); {_advice(path)}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise LeasesUnavailableError(f"{path} is not a folder; {_advice(path)}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise LeasesUnavailableError(f"{path} belongs to another user and is not shared; {_advice(path)}")
    return LeaseFolder(path)


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
    is_today = time.localtime(seconds)[:3] == time.localtime()[:3]
    return time.strftime("%H:%M" if is_today else "%F %H:%M", time.localtime(seconds))


def _write(file: int, record: dict[str, Any]) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(record).encode(), 0)


def _read(path: Path) -> dict[str, Any]:
    """Return the record in a file; empty where it cannot be read as one."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(file, encoding="utf-8", errors="replace") as text:
            record = json.loads(text.read(4096))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _close(file: int) -> None:
    _open_files.discard(file)
    os.close(file)


def _close_all() -> None:
    for file in _open_files:
        with suppress(OSError):
            os.close(file)
    _open_files.clear()


os.register_at_fork(after_in_child=_close_all)
