"""Times the phases of profiled steps; the host waits for the device at each border between two phases."""

import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from distrain.data.sources.base import Batch
from distrain.distributed.world import World
from distrain.training.train_state import Phase


def wait_for_device(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the purpose of this function: times on the host would else be of launches


class PhaseClock:
    """The `StepProgress` of a benchmark: the training loop itself sets each phase as it begins, and this times them.

    The device is awaited at each border, so that a kernel counts where it was launched; nothing overlaps any more,
    which is why throughput is never measured with it. All ranks meet before the reduction: until the last of them is
    there the others wait, which would else be counted as the reduction's.
    """

    def __init__(self, world: World) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.progress = 0
        self._world = world
        self._device = device = world.device
        self._set_phase: Phase = "start-up"
        self._phase = "other"
        wait_for_device(device)
        self._since = time.perf_counter()

    @property
    def phase(self) -> Phase:
        """The phase that the loop has set last."""
        return self._set_phase

    @phase.setter
    def phase(self, name: Phase) -> None:
        self._set_phase = name
        if name == "reduce" and self._world.size > 1:
            self._begin("wait")
            self._world.barrier()
        self._begin(name)

    def _begin(self, name: str) -> None:
        wait_for_device(self._device)
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = name, now

    @property
    def step(self) -> int:
        """Nothing that anyone asks for; setting it ends a step, and what comes until the next one is `other`."""
        return 0

    @step.setter
    def step(self, _: int) -> None:
        self.finish()

    def finish(self) -> None:
        """End the phase: what comes until the next one is `other`."""
        self._begin("other")

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, and count as `prepare` what is done with each before it reaches the network."""
        for batch in batches:
            self._begin("prepare")
            yield batch
