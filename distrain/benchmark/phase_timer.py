"""Times the phases of profiled steps; the host waits for the device between two phases."""

import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from distrain.data.sources.base import Batch
from distrain.distributed.world import World
from distrain.training.train_state import Phase


def wait_for_device(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the purpose: otherwise the host would time only the launches


class PhaseClock:
    """The `StepProgress` of a benchmark, which times the phases that the training loop sets.

    It waits for the device after each phase, so that a kernel counts in the phase that launched it. Nothing overlaps
    then, so throughput is never measured with it. A barrier before the reduction separates the time that ranks wait for
    slower ones from that of the reduction.
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
        """The phase that the loop set last."""
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
        """Not used; setting it ends a step, and the time until the next one counts as `other`."""
        return 0

    @step.setter
    def step(self, _: int) -> None:
        self.finish()

    def finish(self) -> None:
        """End the phase: the time until the next one counts as `other`."""
        self._begin("other")

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches; the time between a batch and the network's pass counts as `prepare`."""
        for batch in batches:
            self._begin("prepare")
            yield batch
