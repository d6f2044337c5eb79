"""Defines the protocol of a parallel strategy, which turns the work of all ranks in a step into one update."""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from distrain.data.loading.sampler import GlobalBatch


class Strategy(Protocol):
    """The training loop calls in every step, in this order: begin_step, micro_batch for each one, finish_step.

    A micro-batch's mean loss is multiplied by its share of the global batch's samples, times `loss_scale`, before the
    backward pass. `module` is the unwrapped network, with its original parameter names.
    """

    name: str  # stored in `state.json` and compared at a resume: must never change
    module: nn.Module
    loss_scale: int  # the world size where gradients are averaged over the ranks, 1 where they are summed
    forward_is_collective: bool  # whether each forward pass is a collective call, in evaluation too

    def begin_step(self, global_batch: GlobalBatch, step: int) -> nn.Module:
        """Prepare a step, counted from 0 over the whole run, and return the module to call in it."""
        ...

    def micro_batch(self, global_batch: GlobalBatch, index: int) -> AbstractContextManager[None]:
        """Return the context of the forward and backward pass of the micro-batch with index `index`."""
        ...

    def finish_step(self, global_batch: GlobalBatch, step: int) -> None:
        """Combine gradients and buffers over the global batch, equal on all ranks."""
        ...

    def zero_grad(self) -> None:
        """Discard the gradients after the update."""
        ...

    def close(self) -> None:
        """End its threads and process groups; all ranks must call it together."""
        ...
