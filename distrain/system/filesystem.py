"""Explains what a file system refuses in one sentence: the path, the reason, the owner, and what to do."""

import errno
import os
import pwd
import shlex
import shutil
from contextlib import suppress
from pathlib import Path

from distrain.errors import ExitCode, StorageError
from distrain.messages import MEBIBYTE, escape_control_characters

_NO_PERMISSION = {errno.EACCES, errno.EPERM}
_ELSEWHERE = "name a place elsewhere (--run, --out or --root), or run the command in another folder"

# What each errno means to a user, and what to do about it. An errno that is not here is not explained: it may be a bug.
_REASONS = {
    errno.EROFS: ("its file system is read-only", _ELSEWHERE),
    errno.ENOSPC: ("the disk is full", "free some space, or name a place on another disk"),
    errno.EDQUOT: ("your disk quota is used up", "delete what you no longer need (`quota -s` shows the limit)"),
    errno.EFBIG: (
        "the file system takes no file of that size",
        "name a place on another disk (`ulimit -f` may limit it)",
    ),
    errno.EIO: ("the disk reports an input/output error", "look at `dmesg`, and use another disk until it is repaired"),
    errno.ESTALE: ("the network file system has lost it (stale file handle)", "run the command again, or remount it"),
    errno.ENOTCONN: ("its network file system is disconnected", "mount it again"),
    errno.ETIMEDOUT: ("its network file system does not answer", "run the command again once it does"),
    errno.EHOSTDOWN: ("the host of its network file system is down", "run the command again once it is up"),
    errno.EREMOTEIO: ("its network file system reports an input/output error", "run the command again"),
    errno.ENODEV: ("its device is gone", "mount it again"),
    errno.ENXIO: ("its device is gone", "mount it again"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one; most file systems take 255 bytes"),
    errno.EILSEQ: ("its file system does not take such a name", "choose one of letters, digits and dashes"),
    errno.ELOOP: ("its symbolic links form a loop", "repair them"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "check the path"),
    errno.EISDIR: ("it is a folder, not a file", "check the path"),
    errno.ENOENT: ("it does not exist", "check the path; it may have been deleted meanwhile"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n 65536`"),
    errno.ENFILE: ("too many files are open on this machine", "close some programs"),
    errno.ENOMEM: ("there is no memory left", "close some programs"),
    errno.ETXTBSY: ("another program runs it right now", "wait until that ends"),
    errno.EBUSY: ("another program uses it", "wait until that ends"),
    errno.ENOLCK: ("its file system has no locks", _ELSEWHERE),
    errno.EXDEV: ("it lies on another file system", _ELSEWHERE),
}
_WITHOUT_A_PATH = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# The request was fine and its result is lost: the command has failed.
_LOST_RESULT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO}


def explain(error: OSError) -> str | None:
    """Return the sentence for an error of the file system; None for any other one, which may be a bug."""
    path = _path_of(error)
    if error.errno in _NO_PERMISSION:
        return None if path is None else f"{_shown(path)}: {_no_permission(path)}"
    if error.errno is None and "temporary directory" in str(error):
        return f"{error}; set TMPDIR to a folder that you may write to"
    found = _REASONS.get(error.errno or 0)
    if found is None or (path is None and error.errno not in _WITHOUT_A_PATH):
        return None
    reason, remedy = found
    if error.errno == errno.ENOSPC and path is not None:
        reason += _free_space(path)
    return f"{'a file' if path is None else _shown(path)}: {reason}; {remedy}"


def exit_code(error: OSError) -> ExitCode:
    """Return what a command ends with that cannot handle the error: bad input, or a result that was lost."""
    return ExitCode.FAILED if error.errno in _LOST_RESULT else ExitCode.BAD_INPUT


def name_path(error: OSError, path: Path) -> OSError:
    """Return the error with the path that it concerns: one that comes from writing to an open file names none."""
    if error.filename is None:
        error.filename = str(path)
    return error


def check_writable(folder: Path, *, otherwise: str) -> None:
    """Raise `StorageError` where nothing can be written in `folder`, or in what it would be made in.

    `otherwise` says what else can be done. Root may write anywhere but on a read-only file system.
    """
    place = nearest_existing(folder)
    if os.access(place, os.W_OK | os.X_OK):
        return
    if _is_read_only(place):
        raise StorageError(f"nothing can be written in {_shown(place)}: its file system is read-only; {otherwise}")
    raise StorageError(f"nothing can be written in {_shown(place)}: {_denied(place)}; {otherwise}")


def nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists and may be looked at."""
    path = path.absolute()
    for candidate in (path, *path.parents):
        with suppress(OSError):
            candidate.lstat()
            return candidate
    return Path(path.anchor)


def owner_of(path: Path) -> str | None:
    """Return the name of the user that owns the path, or a folder above it; None where that is not known."""
    try:
        uid = nearest_existing(path).stat().st_uid
    except OSError:
        return None
    return _user_name(uid)


def is_own(path: Path) -> bool:
    """Whether the user of this process owns the path, or the folder that it would be made in."""
    try:
        return nearest_existing(path).stat().st_uid == os.geteuid()
    except OSError:
        return False


def _path_of(error: OSError) -> Path | None:
    """Return the path that the error concerns; of a rename, the name that the file was to get."""
    name = error.filename2 if error.filename2 is not None else error.filename
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) and name else None


def _no_permission(path: Path) -> str:
    above = reversed(path.absolute().parents)
    closed = next((folder for folder in above if folder.is_dir() and not os.access(folder, os.X_OK)), None)
    if closed is None and os.path.lexists(path) and not os.access(path, os.R_OK):
        closed = path
    if closed is None:
        return f"{_denied(path)}; {_ELSEWHERE}"
    if is_own(closed):
        return _denied(closed)
    return f"{_denied(closed)}; ask {owner_of(closed) or 'its owner'} for access, or name another path"


def _denied(path: Path) -> str:
    """Return who may do what was refused, for a path that belongs to another user or is closed to its own."""
    place, user, owner = nearest_existing(path), _user_name(os.geteuid()), owner_of(path)
    if owner is None or is_own(place):
        return f"you ({user}) have no permission; `chmod -R u+rwX {shlex.quote(_shown(place))}` gives it to the owner"
    return f"{'it' if place == path else _shown(place)} belongs to {owner}, and you ({user}) have no permission"


def _free_space(path: Path) -> str:
    with suppress(OSError):
        return f" ({shutil.disk_usage(nearest_existing(path)).free / MEBIBYTE:,.1f} MiB are free)"
    return ""


def _is_read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a user of a container, or of another machine
        return f"user {uid}"


def _shown(path: Path) -> str:
    """Return the path on one line: a name may hold a newline."""
    return escape_control_characters(str(path))
