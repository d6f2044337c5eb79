"""Keeps the token and the login codes of a folder of runs, in files that only their owner can read.

`.serve/token` is the secret from which all else follows: login codes, sessions and CSRF tokens are stored as digests
that are keyed by it, so that a new token revokes them all, and what is stored logs nobody in.
"""

import hashlib
import hmac
import os
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

from distrain.errors import StorageError
from distrain.runs.directory import SERVE_FOLDER
from distrain.system.leases import user_name

CODE_LIFETIME_S = 600.0
CodeState: TypeAlias = Literal["valid", "used", "expired", "unknown"]
_OTHERS = 0o077
_BYTES = 32  # of each secret


class Credentials:
    """The secrets in `ROOT/.serve`; they are read at each use, so that a new token counts at once."""

    def __init__(self, root: Path) -> None:
        self.folder = root / SERVE_FOLDER
        self.token_file = self.folder / "token"
        self._address = self.folder / "address"
        self._codes = self.folder / "codes"

    def create(self) -> None:
        """Create what is missing; raises `StorageError` where others could read or replace it."""
        _create_folder(self.folder)
        _create_folder(self._codes)
        if not os.path.lexists(self.token_file):
            self.renew()
        self.read_token()

    def renew(self) -> None:
        """Replace the token: all sessions and login codes end."""
        _create_folder(self.folder)
        write_private(self.token_file, f"{secrets.token_urlsafe(_BYTES)}\n")

    def read_token(self) -> str:
        """Return the token; raises `StorageError` where it is missing, or others could read or replace it."""
        token = read_private(self.token_file).strip()
        if len(token) < _BYTES:
            raise StorageError(f"{self.token_file} holds no token; `distrain serve --new-token` writes one")
        return token

    def is_token(self, text: str) -> bool:
        """Whether this is the token, compared in constant time."""
        return hmac.compare_digest(text.encode(errors="surrogateescape"), self.read_token().encode())

    def digest(self, purpose: str, text: str) -> str:
        """Return a digest of a secret for one purpose, keyed by the token."""
        message = f"{purpose}:{text}".encode(errors="surrogateescape")
        return hmac.new(self.read_token().encode(), message, hashlib.sha256).hexdigest()

    def new_code(self) -> str:
        """Return a login code, which `take_code` accepts once within ten minutes, in any process of this user."""
        self._forget_expired()
        code = secrets.token_urlsafe(_BYTES)
        write_private(self._codes / self.digest("code", code), "")
        return code

    def take_code(self, code: str) -> CodeState:
        """Return whether a login code is valid, and if not, why; a valid one is used afterwards."""
        path = self._codes / self.digest("code", code)
        used = path.with_name(f"{path.name}.used")
        try:
            age_s = time.time() - path.lstat().st_mtime
            path.rename(used)  # of two that use it at once, one succeeds
        except OSError:
            return "used" if used.exists() else "unknown"
        return "valid" if age_s <= CODE_LIFETIME_S else "expired"

    def write_address(self, address: str) -> None:
        """Keep the address of the page, for `distrain serve --link`."""
        write_private(self._address, address)

    def read_address(self) -> str | None:
        """Return the address of the page that is shown now; None where none is."""
        return read_private(self._address) if os.path.lexists(self._address) else None

    def forget_address(self) -> None:
        """Forget the address: the page is not shown any more."""
        with suppress(OSError):
            self._address.unlink()

    def login_link(self, address: str) -> str:
        """Return a link that logs its user in, once."""
        return f"{address}/login?code={self.new_code()}"

    def _forget_expired(self) -> None:
        for path in self._codes.iterdir():
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > CODE_LIFETIME_S:
                    path.unlink()


def read_private(path: Path) -> str:
    """Return the text of a file; raises `StorageError` unless it and its folder belong to this user alone."""
    try:
        _check_private(path.parent, path.parent.lstat(), is_kind=stat.S_ISDIR)
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else error.strerror
        raise StorageError(f"{path} cannot be read ({reason}); `distrain serve --new-token` writes another") from None
    try:
        _check_private(path, os.fstat(file), is_kind=stat.S_ISREG)
    except StorageError:
        os.close(file)
        raise
    with os.fdopen(file, encoding="utf-8", errors="replace") as text:
        return text.read()


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, at once."""
    draft = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "w", encoding="utf-8") as written:
            written.write(text)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _create_folder(path: Path) -> None:
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    _check_private(path, path.lstat(), is_kind=stat.S_ISDIR)


def _check_private(path: Path, status: os.stat_result, *, is_kind: Callable[[int], bool]) -> None:
    """Raise `StorageError` unless a file or folder is of the expected kind, and this user's alone."""
    if stat.S_ISLNK(status.st_mode):
        raise StorageError(f"{path} is a link, which others may have made; delete it, and start serve again")
    if not is_kind(status.st_mode):
        raise StorageError(f"{path} is not what distrain writes there; move it away, and start serve again")
    if status.st_uid != os.geteuid():
        raise StorageError(
            f"{path} belongs to {user_name(status.st_uid)}, who runs the page of this folder; --no-page runs the queue "
            f"without it"
        )
    if status.st_mode & _OTHERS:
        raise StorageError(
            f"others can read {path}, which gives access to the page; `chmod go-rwx {path}` and "
            f"`distrain serve --new-token` end that"
        )
