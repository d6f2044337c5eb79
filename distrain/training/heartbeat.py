"""Writes the heartbeat of this rank once a second, and on rank 0 the status of the run.

Its thread reads only plain numbers of the training. It does not walk the frames of running threads, which can crash
CPython 3.11: faulthandler writes the stacks on demand (`distrain.runs.stacks`).
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from distrain.runs.directory import RunDirectory
from distrain.runs.stacks import read_own_threads
from distrain.runs.status import Heartbeat, State
from distrain.system.loop_guard import LoopGuard
from distrain.training.train_state import TrainState

HEARTBEAT_S = 1.0

log = logging.getLogger(__name__)


class HeartbeatWriter:
    """Writes the heartbeat of this rank to `heartbeats/`, and on rank 0 the status of the run to `status.json`.

    The context manager runs a thread that does it once a second, so that a slow disk never delays a step.
    """

    def __init__(self, run: RunDirectory, rank: int, state: TrainState) -> None:
        self.on_beat: Callable[[int], None] | None = None  # called at each heartbeat with the step, in the thread
        self.figures: dict[str, float] = {}  # what the rank has seen of its machine last, for the other ranks
        self._run = run
        self._rank = rank
        self._state = state
        self._is_behind = False  # whether the newest status could not be written
        self._lock = threading.Lock()  # one writer at a time, so that no older snapshot replaces a newer one
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="distrain-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if kind is not None:
            self.write_status("failed")

    def write_status(self, state: State | None = None) -> None:
        """Write the current status of the run, with a new state if one is given; do nothing during start-up."""
        if not self._state.has_begun:
            return
        with self._lock:
            status = self._state.snapshot(state)
            if self._rank != 0:
                return
            try:
                self._run.write_status(status)
                self._is_behind = False
            except OSError as error:  # a full disk: the next heartbeat tries again
                if not self._is_behind:
                    log.warning("%s could not be written: %s; training continues", self._run.status, error.strerror)
                self._is_behind = True

    def write_heartbeat(self) -> None:
        """Write the current heartbeat of this rank."""
        threads = read_own_threads() if self._run.stacks_request.exists() else {}
        heartbeat = self.current().model_copy(update={"threads": threads})
        with self._lock:
            self._run.write_heartbeat(heartbeat)

    def current(self) -> Heartbeat:
        """Return the heartbeat of this rank as of now, without stacks."""
        state = self._state
        return Heartbeat(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=time.time(),
            step=state.step,
            phase=state.phase,
            progress=state.progress,
            figures=self.figures,
        )

    def _beat(self) -> None:
        """Write until the end, in the thread; errors, such as a full disk, do not end it."""
        writing, watching = LoopGuard("writing the heartbeat"), LoopGuard("the watch over memory")
        while True:
            with writing:
                self.write_heartbeat()
            with writing:
                self.write_status()
            with watching:
                if self.on_beat is not None:
                    self.on_beat(self._state.step)
            if self._over.wait(HEARTBEAT_S):
                return
