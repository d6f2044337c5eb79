"""Connects the launchers of two nodes: JSON objects, one on each line, and a heartbeat every second."""

import json
import select
import socket
import time
from contextlib import suppress
from typing import Any

HEARTBEAT_S = 1.0
SILENCE_TIMEOUT_S = 15.0  # longer than a launcher needs to kill its processes, when it sends no heartbeat
_MAX_BYTES = 1 << 16  # of a line; a peer that sends more is not a launcher


class PeerConnection:
    """A non-blocking connection: its user polls it for messages, and to check that the peer is alive."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._buffer = b""
        self._received_s = self._sent_s = time.monotonic()
        self._is_open = True

    @property
    def failure(self) -> str | None:
        """Why the connection can no longer be used; None for a working one."""
        if not self._is_open:
            return "has closed the connection"
        silent_s = time.monotonic() - self._received_s
        return f"has sent no heartbeat for {silent_s:.0f} s" if silent_s > SILENCE_TIMEOUT_S else None

    def send(self, **message: Any) -> None:
        """Send an object; on an error the connection counts as closed."""
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._is_open = False

    def poll(self) -> list[dict[str, Any]]:
        """Return the objects received since the last call, and send a heartbeat when it is time to."""
        if self._is_open and time.monotonic() - self._sent_s >= HEARTBEAT_S:
            self._sent_s = time.monotonic()
            self.send()
        while self._is_open and select.select([self._connection], [], [], 0)[0]:
            try:
                received = self._connection.recv(4096)
            except OSError:
                received = b""
            self._buffer += received
            self._is_open = bool(received) and len(self._buffer) < _MAX_BYTES
            self._received_s = time.monotonic()
        *lines, self._buffer = self._buffer.split(b"\n")
        return [message for text in lines if (message := self._read(text))]

    def close(self) -> None:
        """Close the connection; the peer notices at once."""
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
        self._is_open = False  # the peer is another program
        return {}
