"""Owns what a run measures of itself: losses kept on the device until they are read, and throughput."""

import math
from collections import deque
from collections.abc import Sequence
from operator import mul

import torch

from distrain.data.order import TrainOrder
from distrain.world import World


class LossMeter:
    """The losses of the steps since the last record: on the device while they are fresh, then exact on the host.

    The list of steps is part of a checkpoint, so that a record that spans a resume has the same mean.
    """

    def __init__(self, order: TrainOrder, world: World) -> None:
        self.settled: list[float] = []  # the mean loss of each step over its samples, all ranks'
        self._last_epoch: deque[float] = deque(maxlen=order.steps_per_epoch)  # the same, of as many steps
        self._fresh: list[torch.Tensor] = []  # the mean loss of each micro-batch of this rank
        self._order = order
        self._world = world

    def add(self, loss: torch.Tensor) -> None:
        """Take the mean loss of this rank's next micro-batch, without waiting for the device."""
        self._fresh.append(loss.detach())

    def settle(self, steps: Sequence[int]) -> list[float]:
        """Bring the losses of `steps` to the host and return them: the loop's only regular device synchronisation.

        Each step's mean is taken over the micro-batches of all ranks, exactly rounded, so that it is the same however
        they were dealt.
        """
        if not steps:
            return []
        windows = [self._order.window(step) for step in steps]
        width = max(window.num_pieces for window in windows)
        places = [row * width + piece for row, window in enumerate(windows) for piece in window.own]
        losses = torch.zeros(len(windows) * width, dtype=torch.float64, device=self._world.device)
        if self._fresh:
            losses[torch.tensor(places, device=losses.device)] = torch.stack(self._fresh).double()
            self._fresh.clear()
        rows = self._world.all_reduce(losses).view(-1, width).tolist()  # x + 0 is exact: each is one rank's
        for row, window in zip(rows, windows, strict=True):
            total = math.fsum(map(mul, row, window.sizes))  # a shorter window leaves the end of its row empty
            self.settled.append(total / window.num_samples)
        self._last_epoch += self.settled[-len(steps) :]
        return self.settled[-len(steps) :]

    def last_epoch(self) -> float:
        """Return the mean loss of the last steps, as many as an epoch has; infinite until there are so many."""
        if len(self._last_epoch) < self._order.steps_per_epoch:
            return math.inf
        return math.fsum(self._last_epoch) / len(self._last_epoch)

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
