"""Keeps the newest events of a subject as bytes, which all clients share, so that a slow one costs nothing more."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from distrain.system.files import strict_json

MAX_BYTES = 1 << 20  # of the events that a subject keeps
HEARTBEAT = b": heartbeat\n\n"


@dataclass(frozen=True)
class Frame:
    """An event as it is sent; `number` counts the events of all subjects."""

    number: int
    event: str
    content: bytes


class Subject:
    """The newest events on a subject, the oldest first. What came up to the number `floor` may be missing."""

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self._frames: deque[Frame] = deque()
        self._size = 0

    def add(self, frame: Frame, *, is_state: bool) -> None:
        """Add an event; one with a whole state replaces that before it. The oldest are dropped beyond `MAX_BYTES`."""
        if is_state:
            for old in [one for one in self._frames if one.event == frame.event]:
                self._frames.remove(old)
                self._size -= len(old.content)
        self._frames.append(frame)
        self._size += len(frame.content)
        while self._size > MAX_BYTES and len(self._frames) > 1:
            oldest = self._frames.popleft()
            self.floor, self._size = oldest.number, self._size - len(oldest.content)

    def after(self, number: int) -> list[Frame] | None:
        """Return the events after a number; None where some are missing."""
        return None if number < self.floor else [frame for frame in self._frames if frame.number > number]


def encode(event: str, data: Any, *, id: str) -> bytes:  # noqa: A002 - the name of the field
    """Return an event as `text/event-stream` has it; strict JSON in ASCII has no line breaks."""
    return f"id: {id}\nevent: {event}\ndata: {strict_json(data)}\n\n".encode("ascii")
