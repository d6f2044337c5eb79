"""Holds one connection between the launchers of two machines: JSON objects, one a line, and a heartbeat a second."""

import json
import select
import socket
import time
from contextlib import suppress
from typing import Any

BEAT_S = 1.0
SILENCE_TIMEOUT_S = (
    15.0  # longer than a launcher takes to kill what it has started: it gives no sign of life in that time
)
_MAX_BYTES = 1 << 16  # more without an end of line is no launcher


class PeerConnection:
    """A connection that never waits: whoever holds it polls it, and learns so what came and whether the other lives."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._buffer = b""
        self._heard = self._beaten = time.monotonic()
        self._is_open = True

    @property
    def failure(self) -> str | None:
        """What has become of a connection that is of no use any more; None for a good one."""
        if not self._is_open:
            return "has closed the connection"
        silent_s = time.monotonic() - self._heard
        return f"has given no sign of life for {silent_s:.0f} s" if silent_s > SILENCE_TIMEOUT_S else None

    def send(self, **message: Any) -> None:
        """Send an object; the connection is lost where it does not take it."""
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._is_open = False

    def poll(self) -> list[dict[str, Any]]:
        """Return the objects that have come since, and give a sign of life when it is time to."""
        if self._is_open and time.monotonic() - self._beaten >= BEAT_S:
            self._beaten = time.monotonic()
            self.send()
        while self._is_open and select.select([self._connection], [], [], 0)[0]:
            try:
                received = self._connection.recv(4096)
            except OSError:
                received = b""
            self._buffer += received
            self._is_open = bool(received) and len(self._buffer) < _MAX_BYTES
            self._heard = time.monotonic()
        *whole, self._buffer = self._buffer.split(b"\n")
        return [message for text in whole if (message := self._read(text))]

    def close(self) -> None:
        """Leave; the other side sees it at once."""
        self._is_open = False
        with suppress(OSError):
            self._connection.close()

    def _read(self, text: bytes) -> dict[str, Any]:
        try:
            message = json.loads(text)
        except ValueError:
            message = None
        if isinstance(message, dict):
            return message
        self._is_open = False  # something else has found the port
        return {}
