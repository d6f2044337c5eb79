"""Says what a parallel strategy is: how the ranks' work on one step becomes one and the same update."""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from distrain.data.loading.sampler import GlobalBatch


class Strategy(Protocol):
    """Called by the loop, for every step in this order: begin_step, micro_batch for each one, finish_step.

    A micro-batch's mean loss is multiplied by its share of the global batch's samples, times `loss_scale`, before the
    backward pass. `module` is the network itself, with its own parameter names, whatever wraps it.
    """

    name: str  # in `state.json`, where a resume compares it: it never changes
    module: nn.Module
    loss_scale: int  # the world size where gradients are averaged over the ranks, 1 where they are summed
    forward_is_collective: bool  # whether each forward pass is a collective call, in evaluation too

    def begin_step(self, global_batch: GlobalBatch, step: int) -> nn.Module:
        """Prepare a step, counted from 0 over the whole run, and return what to call in it."""
        ...

    def micro_batch(self, global_batch: GlobalBatch, index: int) -> AbstractContextManager[None]:
        """Return the context of the forward and backward pass of the micro-batch with index `index`."""
        ...

    def finish_step(self, global_batch: GlobalBatch, step: int) -> None:
        """Make gradients and buffers those of the global batch, equal on all ranks."""
        ...

    def zero_grad(self) -> None:
        """Forget the gradients once the update is done."""
        ...

    def close(self) -> None:
        """Give back threads and process groups of its own; all ranks call it together."""
        ...
