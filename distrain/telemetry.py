"""Owns what a run says of itself: losses kept on the device until they are read, throughput, and the heartbeat."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch

from distrain.data.order import TrainOrder
from distrain.rundir import RunDirectory, State, Status
from distrain.world import World

HEARTBEAT_S = 1.0

log = logging.getLogger(__name__)


class LossMeter:
    """The losses of the steps since the last record: on the device while they are fresh, then exact on the host.

    The list of steps is part of a checkpoint, so that a record that spans a resume has the same mean.
    """

    def __init__(self, order: TrainOrder, world: World) -> None:
        self.settled: list[float] = []  # the mean loss of each step over its samples, all ranks'
        self._fresh: list[torch.Tensor] = []  # the mean loss of each micro-batch of this rank
        self._order = order
        self._world = world

    def add(self, loss: torch.Tensor) -> None:
        """Take the mean loss of this rank's next micro-batch, without waiting for the device."""
        self._fresh.append(loss.detach())

    def settle(self, steps: Sequence[int]) -> None:
        """Bring the losses of `steps` to the host: the loop's only regular device synchronisation.

        Each step's mean is taken over the micro-batches of all ranks, exactly rounded, so that it is the same however
        they were dealt.
        """
        if not steps:
            return
        windows = [self._order.window(step) for step in steps]
        width = max(window.num_pieces for window in windows)
        places = [row * width + piece for row, window in enumerate(windows) for piece in window.own]
        losses = torch.zeros(len(windows) * width, dtype=torch.float64, device=self._world.device)
        if self._fresh:
            losses[torch.tensor(places, device=losses.device)] = torch.stack(self._fresh).double()
            self._fresh.clear()
        rows = self._world.all_reduce(losses).view(-1, width).tolist()  # x + 0 is exact: each is one rank's
        for row, window in zip(rows, windows, strict=True):
            total = math.fsum(loss * size for loss, size in zip(row, window.sizes, strict=False))
            self.settled.append(total / window.num_samples)

    def take_mean(self) -> float:
        """Return the mean over the settled steps and begin anew."""
        mean = math.fsum(self.settled) / len(self.settled)
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
