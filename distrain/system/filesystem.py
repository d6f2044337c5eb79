"""Explains a file system error in one sentence: the path, the reason, the owner, and what to do."""

import errno
import os
import pwd
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distrain.errors import ExitCode, StorageError
from distrain.messages import MEBIBYTE, escape_control_characters

_NO_PERMISSION = {errno.EACCES, errno.EPERM}
_ELSEWHERE = "choose another folder (--run, --out or --root), or run the command in another folder"

# What each errno means to a user, and what to do about it. Other errnos are not explained: they may be a bug.
_REASONS = {
    errno.EROFS: ("its file system is read-only", _ELSEWHERE),
    errno.ENOSPC: ("the disk is full", "free some space, or choose a folder on another disk"),
    errno.EDQUOT: ("your disk quota is used up", "delete what you no longer need (`quota -s` shows the limit)"),
    errno.EFBIG: (
        "the file is too large for its file system",
        "choose a folder on another disk (`ulimit -f` may limit the size)",
    ),
    errno.EIO: ("the disk reports an input/output error", "check `dmesg`, and use another disk until it is repaired"),
    errno.ESTALE: ("the network file system has lost it (stale file handle)", "run the command again, or remount it"),
    errno.ENOTCONN: ("its network file system is disconnected", "mount it again"),
    errno.ETIMEDOUT: ("its network file system does not answer", "run the command again once it does"),
    errno.EHOSTDOWN: ("the host of its network file system is down", "run the command again once it is up"),
    errno.EREMOTEIO: ("its network file system reports an input/output error", "run the command again"),
    errno.ENODEV: ("its device is gone", "mount it again"),
    errno.ENXIO: ("its device is gone", "mount it again"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one; most file systems allow 255 bytes"),
    errno.EILSEQ: ("its file system does not allow such a name", "choose one of letters, digits and dashes"),
    errno.ELOOP: ("its symbolic links form a loop", "repair them"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "check the path"),
    errno.EISDIR: ("it is a folder, not a file", "check the path"),
    errno.ENOENT: ("it does not exist", "check the path; it may have been deleted meanwhile"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n 65536`"),
    errno.ENFILE: ("too many files are open on this machine", "close some programs"),
    errno.ENOMEM: ("there is no memory left", "close some programs"),
    errno.ETXTBSY: ("another program is running it", "wait until that program ends"),
    errno.EBUSY: ("another program is using it", "wait until that program ends"),
    errno.ENOLCK: ("its file system has no locks", _ELSEWHERE),
    errno.EXDEV: ("it is on another file system", _ELSEWHERE),
}
_WITHOUT_A_PATH = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# The request was valid but its result is lost: the command has failed.
_LOST_RESULT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO}


def explain(error: OSError) -> str | None:
    """Return the sentence for an error of the file system; None for any other error, which may be a bug."""
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
    """Return the exit code of a command that ends with the error: bad input, or a result that was lost."""
    return ExitCode.FAILED if error.errno in _LOST_RESULT else ExitCode.BAD_INPUT


def name_path(error: OSError, path: Path) -> OSError:
    """Return the error with the path that it concerns: an error of writing to an open file has no path."""
    if error.filename is None:
        error.filename = str(path)
    return error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the file system in the block name the path."""
    try:
        yield
    except OSError as error:
        raise name_path(error, path) from None


def check_writable(folder: Path, *, otherwise: str) -> None:
    """Raise `StorageError` where `folder`, or the one that it would be created in, is not a folder or not writable.

    `otherwise` is the advice in the message. Root may write anywhere except on a read-only file system.
    """
    existing = nearest_existing(folder)
    if not existing.is_dir():
        raise StorageError(f"{_shown(existing)} is not a folder; {otherwise}")
    if os.access(existing, os.W_OK | os.X_OK):
        return
    if _is_read_only(existing):
        raise StorageError(f"{_shown(existing)} is not writable: its file system is read-only; {otherwise}")
    raise StorageError(f"{_shown(existing)} is not writable: {_denied(existing)}; {otherwise}")


def nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest parent that exists and is accessible."""
    path = path.absolute()
    for candidate in (path, *path.parents):
        with suppress(OSError):
            candidate.lstat()
            return candidate
    return Path(path.anchor)


def owner_of(path: Path) -> str | None:
    """Return the name of the owner of the path, or of its nearest existing parent; None where it is unknown."""
    try:
        uid = nearest_existing(path).stat().st_uid
    except OSError:
        return None
    return _user_name(uid)


def is_own(path: Path) -> bool:
    """Whether the user of this process owns the path, or the folder that it would be created in."""
    try:
        return nearest_existing(path).stat().st_uid == os.geteuid()
    except OSError:
        return False


def _path_of(error: OSError) -> Path | None:
    """Return the path that the error concerns; for a rename, the new name of the file."""
    name = error.filename2 if error.filename2 is not None else error.filename
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) and name else None


def _no_permission(path: Path) -> str:
    parents = reversed(path.absolute().parents)
    closed = next((folder for folder in parents if folder.is_dir() and not os.access(folder, os.X_OK)), None)
    if closed is None and os.path.lexists(path) and not os.access(path, os.R_OK):
        closed = path
    if closed is None:
        return f"{_denied(path)}; {_ELSEWHERE}"
    if is_own(closed):
        return _denied(closed)
    return f"{_denied(closed)}; ask {owner_of(closed) or 'its owner'} for access, or name another path"


def _denied(path: Path) -> str:
    """Return why access to a path was denied: it belongs to another user, or its mode forbids its owner."""
    existing, user, owner = nearest_existing(path), _user_name(os.geteuid()), owner_of(path)
    if owner is None or is_own(existing):
        return (
            f"you ({user}) have no permission; `chmod -R u+rwX {shlex.quote(_shown(existing))}` gives it to the owner"
        )
    return f"{'it' if existing == path else _shown(existing)} belongs to {owner}, and you ({user}) have no permission"


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
    except KeyError:  # a user in a container, or on another machine
        return f"user {uid}"


def _shown(path: Path) -> str:
    """Return the path on one line: a name may contain a newline."""
    return escape_control_characters(str(path))
