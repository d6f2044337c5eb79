"""Detects a stall: no rank moves any more, one of them is why, and the others wait for it."""

import socket
import time
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

# Phases whose length says nothing: a rank that beats in one of them has this many times as long.
_LONG_PHASES = ("start-up", "save", "measure")
_PATIENCE = 30
_MIN_COLLECTIVE_S = 1800.0  # torch's own limit
_LOOK_S = 60.0  # more than it takes to find a stall
_PAUSED_S = 5.0  # between two looks, which are a second apart
_MIN_SILENCE_S = 5.0  # a rank beats once a second, on a busy machine or a slow disk now and then later


@dataclass
class _Seen:
    """One rank as the launcher knows it; times are by its own clock, since those of other machines may differ."""

    heartbeat: Heartbeat
    beat_s: float
    moved_s: float


class StallWatchdog:
    """Looks at the heartbeats of one attempt, again and again."""

    def __init__(
        self, run: RunDirectory, *, timeout_s: float, device: Device = "cpu", clocks: Clocks | None = None
    ) -> None:
        """`clocks` learn from the heartbeats how far those of other machines are off."""
        self._run = run
        self._clocks = clocks or Clocks()
        self._device = device
        self._timeout_s = timeout_s
        self._silence_s = max(timeout_s, _MIN_SILENCE_S)
        self._seen: dict[int, _Seen] = {}
        self._looked_s = time.monotonic()

    def look(self) -> str | None:
        """Return what is to be told of a stall, which is written to `errors/` as well; None while ranks move."""
        now = time.monotonic()
        if (paused_s := now - self._looked_s) > _PAUSED_S:  # this process was stopped, and the ranks with it
            for seen in self._seen.values():
                seen.beat_s += paused_s
                seen.moved_s += paused_s
        self._looked_s = now
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
        culprits = self._stalled_ranks(now)
        return self._report(culprits, now) if culprits else None

    def _stalled_ranks(self, now: float) -> list[_Seen]:
        """Return the ranks that are silent, else those that are least far; none while one of them may take its time."""
        ranks = list(self._seen.values())
        if silent := [seen for seen in ranks if now - seen.beat_s >= self._silence_s]:
            return silent
        least = min(_progress(seen.heartbeat) for seen in ranks)
        behind = [seen for seen in ranks if _progress(seen.heartbeat) == least]
        stands_s = now - max(seen.moved_s for seen in ranks)
        if stands_s < self._timeout_s * _PATIENCE and any(s.heartbeat.phase in _LONG_PHASES for s in ranks):
            return []
        return behind

    def _report(self, culprits: list[_Seen], now: float) -> str:
        paragraphs = []
        waiting = [seen.heartbeat for seen in self._seen.values() if seen not in culprits]
        faults = [self._describe(seen, now, waiting) for seen in culprits]
        # The attempt ends here: a process that is stopped may be continued to write its stack.
        stacks = request_stacks(self._run, [seen.heartbeat for seen in culprits], wake=True)
        for beat, message in zip([seen.heartbeat for seen in culprits], faults, strict=True):
            stack = stacks.get(beat.rank, {}).get(MAIN_THREAD)
            write_rank_error(self._run, beat, kind="Stalled", message=message, stack=stack, time_s=None)
            place = f"its main thread is at\n{stack.rstrip()}" if stack else "it did not answer a request for its stack"
            paragraphs.append(
                f"rank {beat.rank} ({beat.host}, process {beat.pid}) at step {beat.step}: {message}; {place}"
            )
        if self._device == "cuda":
            paragraphs.append(collect(self._run, list(self._seen)))
        return "\n".join(paragraphs)

    def _describe(self, seen: _Seen, now: float, waiting: list[Heartbeat]) -> str:
        beat, silent_s = seen.heartbeat, now - seen.beat_s
        facts = [f"has not moved for {now - seen.moved_s:.0f} s"]
        facts += [f"has given no sign of life for {silent_s:.0f} s"] if silent_s >= self._silence_s else []
        state = state_of(beat.pid) if beat.host == socket.gethostname() else None
        facts += [STATE_TEXTS[state]] if state in STATE_TEXTS else []
        since = time.strftime("%T", time.localtime(time.time() - (now - seen.moved_s)))
        return f"stalled in phase {beat.phase} since {since}: {', '.join(facts)}; {_who_waits(waiting)}"


def collective_timeout_s(stall_timeout_s: float) -> float:
    """Return how long a collective call may take: longer than a stall, so that the watch ends an attempt and says why.

    A rank may wait as long in a collective call as another one may take for its start-up or its part of a save.
    """
    return max(stall_timeout_s * _PATIENCE, _MIN_COLLECTIVE_S) + _LOOK_S


def _place(heartbeat: Heartbeat) -> tuple[int, str, int]:
    return heartbeat.step, heartbeat.phase, heartbeat.progress


def _progress(heartbeat: Heartbeat) -> tuple[int, int]:
    """Return how far a rank is, comparable between ranks; their counts of batches are not."""
    return heartbeat.step, PHASES.index(heartbeat.phase)


def _who_waits(waiting: list[Heartbeat]) -> str:
    if not waiting:
        return "no other rank is further"
    places = ", ".join(f"rank {beat.rank} in {beat.phase} at step {beat.step}" for beat in waiting)
    return f"{'waits' if len(waiting) == 1 else 'wait'} for it: {places}"
