"""Owns what a run measures of itself: losses kept on the device until they are read, and throughput."""

import torch

from distrain.world import World


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
