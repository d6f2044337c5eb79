"""Owns the sign of life of a training process, for whoever looks from outside, and its ear for a stop request."""

import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Literal, Self, get_args

from distrain.rundir import Heartbeat, RunDirectory, State, Status

HEARTBEAT_S = 1.0
LISTEN_S = 0.1  # how long a stop request may go unheard

Phase = Literal["start-up", "data", "forward", "backward", "reduce", "update", "evaluate", "record", "save", "measure"]
log = logging.getLogger(__name__)

PHASES: tuple[str, ...] = get_args(Phase)  # in the order in which a step comes to them


class Heart:
    """Says once a second where this rank stands, in `heartbeats/`, and on rank 0 where the run does, in `status.json`.

    The training loop only assigns `step` and `phase`, and counts `progress` up; a thread does the writing, so a slow
    disk never holds up a step. The same thread watches for the stop file.
    """

    def __init__(self, run: RunDirectory, rank: int) -> None:
        self.step = 0
        self.phase: Phase = "start-up"
        self.progress = 0  # counts micro-batches and batches: a long step or evaluation moves, a stalled one does not
        self.status = Status()
        self.is_stop_requested = False
        self.at_beat: Callable[[int], None] | None = None  # called at each beat with the step, in the thread
        self._run = run
        self._rank = rank
        self._has_begun = False
        self._is_behind = False  # whether the newest status could not be written
        self._main_thread = threading.get_ident()
        self._started = time.monotonic()
        self._first_step = 0
        self._earlier_seconds = 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="distrain-heart", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if kind is not None:
            self.beat("failed")

    def begin(self, status: Status) -> None:
        """Tell from now on where the run stands, too: start-up is over."""
        self._started = time.monotonic()
        self.step = self._first_step = status.step
        self._earlier_seconds = status.train_seconds
        self.status = status
        self._has_begun = True
        self.beat()

    @property
    def train_seconds(self) -> float:
        """What training has taken up to now, over all attempts, start-up left out."""
        return self._earlier_seconds + time.monotonic() - self._started

    @property
    def seconds_per_step(self) -> float | None:
        """What a step of this attempt takes on average, with evaluations and saves; None before the first one."""
        done = self.step - self._first_step
        return (time.monotonic() - self._started) / done if done else None

    def beat(self, state: State | None = None) -> None:
        """Write where the run stands now, in a new state if one is given."""
        if not self._has_begun:
            return
        with self._lock:
            status = self.status
            now = time.time()
            pace_s = self.seconds_per_step
            status.state = state or status.state
            status.step = self.step
            status.heartbeat = now
            status.train_seconds = self.train_seconds
            status.eta_s = None if pace_s is None else (status.total_steps - self.step) * pace_s
            attempt = status.attempts[-1]
            attempt.state, attempt.last_step = status.state, self.step
            if status.state in {"finished", "failed", "stopped"}:
                attempt.ended = now
            if self._rank == 0:
                self._write(status)

    def _write(self, status: Status) -> None:
        try:
            self._run.write_status(status)
            self._is_behind = False
        except OSError as error:  # a full disk: the next beat tries again
            if not self._is_behind:
                log.warning("%s could not be written: %s; training goes on", self._run.status, error.strerror)
            self._is_behind = True

    def hear(self) -> bool:
        """Look for a stop request now, where a tenth of a second matters; returns whether there is one."""
        self.is_stop_requested = self.is_stop_requested or self._run.stop.exists()
        return self.is_stop_requested

    def _beat(self) -> None:
        due = time.monotonic()
        while True:
            self.hear()
            if time.monotonic() >= due:
                due = time.monotonic() + HEARTBEAT_S
                with suppress(OSError):  # a full disk: what matters of it is told below
                    self._run.write_heartbeat(self._heartbeat())
                self.beat()
                if self.at_beat is not None:
                    with suppress(OSError):
                        self.at_beat(self.step)
            if self._over.wait(LISTEN_S):
                return

    def _heartbeat(self) -> Heartbeat:
        frames = sys._current_frames()
        main = frames.pop(self._main_thread, None)
        return Heartbeat(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=time.time(),
            step=self.step,
            phase=self.phase,
            progress=self.progress,
            stack="".join(traceback.format_stack(main)) if main is not None else "",
            threads=_stacks_by_name(frames) if self._run.stacks_request.exists() else {},
        )


def _stacks_by_name(frames: dict[int, FrameType]) -> dict[str, str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'a thread that Python did not start')} ({ident})": "".join(traceback.format_stack(frame))
        for ident, frame in frames.items()
    }
