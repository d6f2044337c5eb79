"""Has one thread look for changes while clients are connected, and wakes them."""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from distrain.service.devices import list_devices
from distrain.service.table import JobTable, read_queue
from distrain.service.web.live.frames import HEARTBEAT, Frame, Subject, encode
from distrain.service.web.live.rows import RunRows
from distrain.service.web.live.tails import RunTail
from distrain.service.web.run_list import RunList
from distrain.system.loop_guard import LoopGuard

HEARTBEAT_S = 15.0
_LOOK_S = 1.0  # between two looks
_LIFE_S = 600.0  # then a client connects again, and shows again who it is
_KEPT = 16  # runs that nobody follows now, for those who come back
_RETRY_MS = 2000

log = logging.getLogger(__name__)


class Followed:
    """A run that clients follow, or have just followed."""

    def __init__(self, tail: RunTail, floor: int) -> None:
        self.subject = Subject(floor)
        self.tail = tail
        self.num_clients = 0


class Live:
    """The events of one folder of runs. Without clients nothing is read; what changed then is found at the next look.

    The thread that looks is the only one that adds events; clients take them in the event loop.
    """

    def __init__(self, root: Path, *, slots: int, run_list: RunList) -> None:
        self._slots = slots
        self._root = root
        self._rows = RunRows(root, run_list)
        self._table = JobTable(root)
        self._generation = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._number = 0  # of the newest event
        self._general = Subject(0)
        self._followed: dict[tuple[str, str], Followed] = {}
        self._states: dict[str, Any] = {}  # what the newest events on the queue and the devices have
        self._wakes: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def position(self) -> str:
        """The id of the newest event: a client that begins after it misses nothing that happens from now on."""
        return f"{self._generation}-{self._number}"

    async def events(self, tail: RunTail | None = None, *, after: str | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the events after the id `after`, by default those from now on; with those of the run of a `tail`.

        The first event is `ready`, or `reset` where some of the events after `after` are not known any more.
        """
        wake, now = asyncio.Event(), self._number  # what the first look finds comes after it
        followed = self._connect(wake, tail, floor=now)
        subjects = [self._general] + ([] if followed is None else [followed.subject])
        try:
            ends, number = time.monotonic() + _LIFE_S, self._find(after)
            is_known = number is not None and all(subject.after(number) is not None for subject in subjects)
            number = number if number is not None and is_known else now
            first = "ready" if is_known or after is None else "reset"
            yield f"retry: {_RETRY_MS}\n".encode() + self._encode(first, {}, number)
            while time.monotonic() < ends:
                found = [subject.after(number) for subject in subjects]
                if any(frames is None for frames in found):  # a client that is too slow
                    number = self._number
                    yield self._encode("reset", {}, number)
                    continue
                frames = sorted((one for part in found for one in part or ()), key=lambda frame: frame.number)
                if frames:
                    number = frames[-1].number
                    yield b"".join(frame.content for frame in frames)
                try:
                    await asyncio.wait_for(wake.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield HEARTBEAT
                wake.clear()
        finally:
            self._disconnect(wake, followed)

    def _find(self, after: str | None) -> int | None:
        """Return the number in the id of an event; None where it is not one of this process."""
        generation, _, number = (after or "").partition("-")
        is_own = generation == self._generation and number.isdecimal() and len(number) < 16
        return int(number) if is_own and int(number) <= self._number else None

    def _encode(self, event: str, data: Any, number: int) -> bytes:
        return encode(event, data, id=f"{self._generation}-{number}")

    def _connect(self, wake: asyncio.Event, tail: RunTail | None, *, floor: int) -> Followed | None:
        followed = None
        with self._lock:
            if tail is not None:
                key = tail.run.path.name, tail.log
                followed = self._followed.pop(key, None) or Followed(tail, floor)
                self._followed[key] = followed  # as the newest
                followed.num_clients += 1
            self._loop = asyncio.get_running_loop()
            self._wakes.add(wake)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_while_wanted, name="distrain-live", daemon=True)
                self._thread.start()
        return followed

    def _disconnect(self, wake: asyncio.Event, followed: Followed | None) -> None:
        with self._lock:
            self._wakes.discard(wake)
            if followed is not None:
                followed.num_clients -= 1
            idle = [key for key, one in self._followed.items() if one.num_clients == 0]
            for key in idle[: max(0, len(idle) - _KEPT)]:
                del self._followed[key]

    def _look_while_wanted(self) -> None:
        guard = LoopGuard("the look for events")
        while True:
            begun = time.monotonic()
            with guard:
                self._look()
            with self._lock:
                if not self._wakes:
                    self._thread = None
                    return
            time.sleep(max(0.0, begun + _LOOK_S - time.monotonic()))

    def _look(self) -> None:
        before = self._number
        rows, gone = self._rows.find_changes()
        if rows or gone:
            self._add(self._general, "runs", {"changed": rows, "removed": gone})
        self._look_at("queue", read_queue(self._root, now=time.time(), table=self._table))
        self._look_at("devices", [device.as_json() for device in list_devices(slots=self._slots)])
        with self._lock:
            followed = [one for one in self._followed.values() if one.num_clients]
        for one in followed:
            for event, data in one.tail.find_changes():
                self._add(one.subject, event, data, is_state=event == "status")
        if self._number > before:
            self._wake_all()

    def _look_at(self, event: str, state: Any) -> None:
        if self._states.get(event) != state:
            self._states[event] = state
            self._add(self._general, event, state, is_state=True)

    def _add(self, subject: Subject, event: str, data: Any, *, is_state: bool = False) -> None:
        frame = Frame(self._number + 1, event, self._encode(event, data, self._number + 1))
        subject.add(frame, is_state=is_state)
        self._number = frame.number

    def _wake_all(self) -> None:
        with self._lock:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_set_all, list(self._wakes))


def _set_all(wakes: list[asyncio.Event]) -> None:
    for wake in wakes:
        wake.set()
