"""Writes the heartbeat of a training process once a second, and listens for the stop file.

The thread that does so reads nothing of the training but plain numbers. To walk the frames of a running thread, as it
once did for its stack, can crash CPython 3.11; a stack is written by faulthandler, on demand (`distrain.runs.stacks`).
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self, get_args

from distrain.runs.directory import Heartbeat, RunDirectory, State, Status
from distrain.runs.stacks import read_own_threads
from distrain.system.loop_guard import LoopGuard
from distrain.system.signals import StopRequest

HEARTBEAT_S = 1.0
LISTEN_S = 0.1  # how long a stop request may go unheard

Phase = Literal[
    "start-up",
    "data",
    "forward",
    "backward",
    "reduce",
    "update",
    "sync",
    "evaluate",
    "record",
    "save",
    "measure",
    "close",  # the loggers: what they still hold goes to disk or over the network
]
log = logging.getLogger(__name__)

PHASES: tuple[str, ...] = get_args(Phase)  # in the order in which a step comes to them


class Heart:
    """Says once a second where this rank stands, in `heartbeats/`, and on rank 0 where the run does, in `status.json`.

    The training loop only assigns `step` and `phase`, and counts `progress` up; a thread does the writing, so a slow
    disk never holds up a step. The same thread watches for the stop file.
    """

    def __init__(self, run: RunDirectory, rank: int, *, stop: StopRequest | None = None) -> None:
        """`stop` is set by whoever hears a request to stop: this thread, or a signal handler."""
        self.step = 0
        self.phase: Phase = "start-up"
        self.progress = 0  # counts micro-batches and batches: a long step or evaluation moves, a stalled one does not
        self.evaluated = 0  # batches of the evaluation in progress, of this rank
        self.to_evaluate = 0  # batches that it has
        self.status = Status()
        self.at_beat: Callable[[int], None] | None = None  # called at each beat with the step, in the thread
        self._stop = stop or StopRequest()
        self._run = run
        self._rank = rank
        self._has_begun = False
        self._is_behind = False  # whether the newest status could not be written
        self._started = time.monotonic()
        self._first_step = 0
        self._steps_per_epoch = 0
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

    def begin(self, status: Status, *, steps_per_epoch: int = 0) -> None:
        """Tell from now on where the run stands, too: start-up is over. What is not a training has no epochs."""
        self._started = time.monotonic()
        self._steps_per_epoch = steps_per_epoch
        self.step = self._first_step = status.step
        self._earlier_seconds = status.train_seconds
        self.status = status
        self._has_begun = True
        with LoopGuard("writing the first heartbeat"):
            self._write_heartbeat()  # here as well, for an attempt that does not live for a second
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
            status.epoch = round(self.step / self._steps_per_epoch, 4) if self._steps_per_epoch else 0.0
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

    @property
    def is_stop_requested(self) -> bool:
        """Whether a stop was requested, by a signal or by the stop file, as of the last look at that."""
        return self._stop.is_set()

    def hear(self) -> bool:
        """Look for the stop file now, where a tenth of a second matters; returns whether a stop is requested."""
        if self._run.stop.exists():
            self._stop.set()
        return self._stop.is_set()

    def _beat(self) -> None:
        """Listen and write until the end, in the thread. Nothing that a round raises ends it: a full disk passes."""
        duties = "listening for the stop file", "writing the heartbeat", "the watch over memory"
        listening, writing, watching = map(LoopGuard, duties)
        next_s = time.monotonic()
        while True:
            with listening:
                self.hear()
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + HEARTBEAT_S
                with writing:
                    self._write_heartbeat()
                with writing:
                    self.beat()
                with watching:
                    if self.at_beat is not None:
                        self.at_beat(self.step)
            if self._over.wait(LISTEN_S):
                return

    def _write_heartbeat(self) -> None:
        heartbeat = Heartbeat(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=time.time(),
            step=self.step,
            phase=self.phase,
            progress=self.progress,
            threads=read_own_threads() if self._run.stacks_request.exists() else {},
        )
        with self._lock:
            self._run.write_heartbeat(heartbeat)
