"""Keeps who is logged in: short-lived sessions that can be revoked, stored as digests."""

import json
import secrets
import time
from contextlib import suppress
from pathlib import Path

from distrain.errors import StorageError
from distrain.service.web.security.credentials import Credentials, read_private, write_private

IDLE_S = 12 * 3600.0  # a session ends when it was not used for this long
LIFETIME_S = 7 * 24 * 3600.0  # and in any case after this
_STORED_EVERY_S = 300.0  # a use within this time of the last one is not stored
_MOST = 100  # the least recently used ends when there are more
_BYTES = 32


class Sessions:
    """The sessions of one page; a `serve` that starts again finds those of the one before in `.serve/sessions.json`.

    A session is known by the digest of the secret in its cookie and the cookie's name, so that it counts at one port
    alone: browsers send the cookies of a host to whatever listens on its ports. All end with the token that keys the
    digests.
    """

    def __init__(self, credentials: Credentials, *, cookie: str) -> None:
        self._credentials = credentials
        self._cookie = cookie
        self._path = credentials.folder / "sessions.json"
        self._times = _read(self._path)  # when each began and was last used, by digest

    def begin(self) -> str:
        """Begin a session; returns the secret for its cookie."""
        self._forget_expired()
        for digest in sorted(self._times, key=lambda digest: self._times[digest][1])[: 1 - _MOST]:
            del self._times[digest]
        secret, now = secrets.token_urlsafe(_BYTES), time.time()
        self._times[self._digest(secret)] = (now, now)
        self._store()
        return secret

    def find(self, secret: str) -> str | None:
        """Return the digest of a session that has not ended, which lasts on from now; None where it has."""
        self._forget_expired()
        digest = self._digest(secret)
        if digest not in self._times:
            return None
        (began, used), now = self._times[digest], time.time()
        if now - used > _STORED_EVERY_S:
            self._times[digest] = (began, now)
            self._store()
        return digest

    def csrf_token(self, secret: str) -> str:
        """Return what unsafe requests of a session send in a header, and no other site knows."""
        return self._credentials.digest("csrf", secret)

    def end(self, secret: str) -> None:
        """End a session."""
        if self._times.pop(self._digest(secret), None) is not None:
            self._store()

    def _digest(self, secret: str) -> str:
        return self._credentials.digest(f"session {self._cookie}", secret)

    def _forget_expired(self) -> None:
        now = time.time()
        self._times = {
            digest: (began, used)
            for digest, (began, used) in self._times.items()
            if now - used <= IDLE_S and now - began <= LIFETIME_S
        }

    def _store(self) -> None:
        with suppress(OSError):  # a full disk: they end with this `serve` then
            write_private(self._path, json.dumps(self._times))


def _read(path: Path) -> dict[str, tuple[float, float]]:
    """Read the stored sessions; none where the file is missing or damaged."""
    try:
        return {
            str(digest): (float(began), float(used)) for digest, (began, used) in json.loads(read_private(path)).items()
        }
    except (StorageError, ValueError, TypeError, AttributeError):
        return {}
