"""Owns what a run says of itself: losses kept on the device until they are read, throughput, and the heartbeat."""

import logging
import threading
import time
from types import TracebackType
from typing import Self

import torch

from distrain.rundir import RunDirectory, State, Status
from distrain.world import World

HEARTBEAT_S = 1.0

log = logging.getLogger(__name__)


class LossMeter:
    """The losses of the steps since the last record: on the device while they are fresh, then exact on the host.

    The list of steps is part of a checkpoint, so that a record that spans a resume has the same mean.
    """

    def __init__(self, world: World) -> None:
        self.fresh: list[torch.Tensor] = []  # this rank's share of each step's loss
        self.settled: list[float] = []  # the loss of each step over all ranks
        self._world = world

    def settle(self) -> None:
        """Bring the fresh losses to the host, summed over the ranks: the loop's only regular device synchronisation."""
        if self.fresh:
            total = self._world.all_reduce(torch.stack(self.fresh).double())
            self.settled += (total / self._world.size).tolist()  # shares are weighted as DDP's mean wants them
            self.fresh.clear()

    def take_mean(self) -> float:
        """Return the mean over the settled steps and begin anew."""
        mean = sum(self.settled) / len(self.settled)
        self.settled = []
        return mean


class Stopwatch:
    """Seconds spent in training steps alone since the last reading, and samples trained on in them."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._samples = 0

    def add(self, seconds: float, samples: int) -> None:
        """Count one stretch of steps."""
        self._seconds += seconds
        self._samples += samples

    def take_rate(self) -> float:
        """Return samples a second over all ranks, and begin anew."""
        rate = self._samples / max(self._seconds, 1e-9)
        self._seconds, self._samples = 0.0, 0
        return rate


class Heart:
    """Writes `status.json` once a second while the run is alive, and at once when its state changes.

    The training loop only assigns `step`; this thread does the writing, so a slow disk never holds up a step.
    """

    def __init__(self, run: RunDirectory, status: Status, *, enabled: bool) -> None:
        self.status = status
        self.step = status.step
        self._first_step = status.step
        self._run = run
        self._enabled = enabled
        self._started = time.monotonic()
        self._earlier_seconds = status.train_seconds
        self._is_behind = False  # whether the newest status could not be written
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="distrain-heart", daemon=True)

    def __enter__(self) -> Self:
        self.beat()
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._over.set()
        if self._enabled:
            self._thread.join()
        if kind is not None:
            self.beat("failed")

    def beat(self, state: State | None = None) -> None:
        """Write where the run stands now, in a new state if one is given."""
        with self._lock:
            status = self.status
            now = time.time()
            elapsed_s = time.monotonic() - self._started
            done = self.step - self._first_step
            status.state = state or status.state
            status.step = self.step
            status.heartbeat = now
            status.train_seconds = self._earlier_seconds + elapsed_s
            status.eta_s = (status.total_steps - self.step) * elapsed_s / done if done else None
            attempt = status.attempts[-1]
            attempt.state, attempt.last_step = status.state, self.step
            if status.state in {"finished", "failed", "stopped"}:
                attempt.ended = now
            if self._enabled:
                self._write(status)

    def _write(self, status: Status) -> None:
        try:
            self._run.write_status(status)
            self._is_behind = False
        except OSError as error:  # a full disk: the next beat tries again
            if not self._is_behind:
                log.warning("%s could not be written: %s; training goes on", self._run.status, error.strerror)
            self._is_behind = True

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            self.beat()
