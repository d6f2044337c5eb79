"""Detects a stall: no rank makes progress, because one of them hangs and the others wait for it."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from distrain.config.profile import Device
from distrain.launchers.exit_reports import write_rank_error
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import Clocks
from distrain.runs.flight_recorder import collect
from distrain.runs.stacks import MAIN_THREAD, request_stacks
from distrain.runs.status import Heartbeat
from distrain.system.process import STATE_TEXTS, state_of
from distrain.training.train_state import PHASES

# Phases that may take long: in them, a rank with a heartbeat has this many times the stall timeout.
_LONG_PHASES = ("start-up", "save", "measure")
_LONG_PHASE_FACTOR = 30
_MIN_COLLECTIVE_S = 1800.0  # torch's default
_DETECTION_S = 60.0  # more than it takes to detect a stall
_PAUSED_S = 5.0  # between two checks, which are normally a second apart
_MIN_SILENCE_S = 5.0  # a heartbeat comes once a second, sometimes later on a busy machine or a slow disk


@dataclass
class _Seen:
    """A rank as seen by the launcher; times are by its own clock, because those of other nodes may differ."""

    heartbeat: Heartbeat
    beat_s: float  # when the last heartbeat was seen
    moved_s: float  # when the last progress was seen


class StallWatchdog:
    """Watches the heartbeats of one attempt."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        timeout_s: float,
        device: Device = "cpu",
        clocks: Clocks | None = None,
        on_stall: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`clocks` measure from the heartbeats how far the clocks of other nodes are off.

        `on_stall` is called with a sentence when the ranks have stalled.
        """
        self._run = run
        self._clocks = clocks or Clocks()
        self._on_stall = on_stall
        self._device = device
        self._timeout_s = timeout_s
        self._silence_s = max(timeout_s, _MIN_SILENCE_S)
        self._seen: dict[int, _Seen] = {}
        self._checked_s = time.monotonic()

    def check(self) -> str | None:
        """Return a message on a stall, and write error reports for it; None while ranks make progress."""
        now = time.monotonic()
        if (paused_s := now - self._checked_s) > _PAUSED_S:  # this process was stopped, and the ranks with it
            for seen in self._seen.values():
                seen.beat_s += paused_s
                seen.moved_s += paused_s
        self._checked_s = now
        for heartbeat in self._run.read_heartbeats():
            self._clocks.observe(heartbeat.host, heartbeat.time)
            before = self._seen.get(heartbeat.rank)
            if before is None:
                self._seen[heartbeat.rank] = _Seen(heartbeat, now, now)
                continue
            before.beat_s = now if heartbeat.time != before.heartbeat.time else before.beat_s
            before.moved_s = now if _place(heartbeat) != _place(before.heartbeat) else before.moved_s
            before.heartbeat = heartbeat
        if not self._seen or now - max(seen.moved_s for seen in self._seen.values()) < self._timeout_s:
            return None
        if not (stalled := self._stalled_ranks(now)):
            return None
        message = self._report(stalled, now)
        self._on_stall(message.splitlines()[0])
        return message

    def _stalled_ranks(self, now: float) -> list[_Seen]:
        """Return the ranks without a heartbeat, else those furthest behind; none while one is in a long phase."""
        ranks = list(self._seen.values())
        if silent := [seen for seen in ranks if now - seen.beat_s >= self._silence_s]:
            return silent
        lowest = min(_progress(seen.heartbeat) for seen in ranks)
        behind = [seen for seen in ranks if _progress(seen.heartbeat) == lowest]
        idle_s = now - max(seen.moved_s for seen in ranks)
        if idle_s < self._timeout_s * _LONG_PHASE_FACTOR and any(s.heartbeat.phase in _LONG_PHASES for s in ranks):
            return []
        return behind

    def _report(self, stalled: list[_Seen], now: float) -> str:
        paragraphs = []
        waiting = [seen.heartbeat for seen in self._seen.values() if seen not in stalled]
        faults = [self._describe(seen, now, waiting) for seen in stalled]
        # The attempt ends here, so a stopped process may be continued to write its stack.
        stacks = request_stacks(self._run, [seen.heartbeat for seen in stalled], wake=True)
        for beat, message in zip([seen.heartbeat for seen in stalled], faults, strict=True):
            stack = stacks.get(beat.rank, {}).get(MAIN_THREAD)
            write_rank_error(self._run, beat, kind="Stalled", message=message, stack=stack, time_s=None)
            place = (
                f"its main thread is at\n{stack.rstrip()}" if stack else "it did not answer the request for its stack"
            )
            paragraphs.append(
                f"rank {beat.rank} ({beat.host}, process {beat.pid}) at step {beat.step}: {message}; {place}"
            )
        if self._device == "cuda":
            paragraphs.append(collect(self._run, list(self._seen)))
        return "\n".join(paragraphs)

    def _describe(self, seen: _Seen, now: float, waiting: list[Heartbeat]) -> str:
        beat, silent_s = seen.heartbeat, now - seen.beat_s
        details = [f"no progress for {now - seen.moved_s:.0f} s"]
        details += [f"no heartbeat for {silent_s:.0f} s"] if silent_s >= self._silence_s else []
        state = state_of(beat.pid) if beat.host == socket.gethostname() else None
        details += [STATE_TEXTS[state]] if state in STATE_TEXTS else []
        since = time.strftime("%T", time.localtime(time.time() - (now - seen.moved_s)))
        return f"stalled in phase {beat.phase} since {since}: {', '.join(details)}; {_describe_waiting(waiting)}"


def collective_timeout_s(stall_timeout_s: float) -> float:
    """Return how long a collective call may take: longer than a stall, so that the watchdog ends and explains a stall.

    A rank may wait in a collective call for as long as another one may take for its start-up or its part of a save.
    """
    return max(stall_timeout_s * _LONG_PHASE_FACTOR, _MIN_COLLECTIVE_S) + _DETECTION_S


def _place(heartbeat: Heartbeat) -> tuple[int, str, int]:
    return heartbeat.step, heartbeat.phase, heartbeat.progress


def _progress(heartbeat: Heartbeat) -> tuple[int, int]:
    """Return the progress of a rank, comparable between ranks; the `progress` of heartbeats is not."""
    return heartbeat.step, PHASES.index(heartbeat.phase)


def _describe_waiting(waiting: list[Heartbeat]) -> str:
    if not waiting:
        return "no other rank is ahead"
    places = ", ".join(f"rank {beat.rank} in {beat.phase} at step {beat.step}" for beat in waiting)
    return f"{'waits' if len(waiting) == 1 else 'wait'} for it: {places}"
