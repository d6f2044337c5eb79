"""Averages the gradients and BatchNorm statistics of small networks on CPUs in one buffer, with one all-reduce."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn

from distrain.data.loading.sampler import GlobalBatch
from distrain.distributed.batchnorm_stats import BatchStatistics
from distrain.distributed.world import World

# Up to this size, DistributedDataParallel also reduces everything at once after the backward pass (its first bucket has
# 1 MiB): nothing overlaps, and its bookkeeping only costs time.
MAX_BYTES = 1 << 20

_NO_CONTEXT: AbstractContextManager[None] = nullcontext()


class FlatAllReduce:
    """Runs the network unwrapped; `parameter.grad` are views of one buffer, averaged over the ranks once per step.

    It replaces DistributedDataParallel if `fits_in_one` returns True, and gives the same gradients. A weight on which
    no rank's loss depends in a step has the gradient 0 in that step.
    """

    name = "flat"
    forward_is_collective = False

    def __init__(self, module: nn.Module, world: World) -> None:
        self.module = module
        self.loss_scale = world.size
        self._world = world
        self._statistics = BatchStatistics(module)
        _broadcast_weights(module)
        trained = [weight for weight in module.parameters() if weight.requires_grad]
        values = self._statistics.values
        num_gradients = sum(weight.numel() for weight in trained)
        self._flat = trained[0].new_zeros(num_gradients + (0 if values is None else values.numel()))
        self._gradients, self._reduced_statistics = self._flat[:num_gradients], self._flat[num_gradients:]
        for weight, gradient in zip(trained, torch.split(self._gradients, [w.numel() for w in trained]), strict=True):
            weight.grad = gradient.as_strided(weight.shape, weight.stride())  # dense, in any memory format

    def begin_step(self, global_batch: GlobalBatch, step: int) -> nn.Module:  # noqa: ARG002 - the protocol's signature
        """Return the network."""
        self._statistics.begin()
        return self.module

    def micro_batch(self, global_batch: GlobalBatch, index: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return an empty context: autograd accumulates the gradients."""
        return _NO_CONTEXT

    def finish_step(self, global_batch: GlobalBatch, step: int) -> None:  # noqa: ARG002
        """Average gradients and statistics over the ranks; a rank without work contributes zeros."""
        values = self._statistics.values
        if values is not None and global_batch.local:
            self._reduced_statistics.copy_(values)
        dist.all_reduce(self._flat)
        self._gradients /= self._world.size
        if values is not None:
            torch.div(self._reduced_statistics, min(self._world.size, global_batch.num_micro_batches), out=values)
        self._statistics.share_rest(global_batch, self._world)

    def zero_grad(self) -> None:
        """Set the gradients to zero."""
        self._flat.zero_()

    def close(self) -> None:
        """Do nothing: there are no resources to release."""


def fits_in_one(module: nn.Module, world: World) -> bool:
    """Return whether there are several CPU processes, and all gradients are float32, dense and small in total."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    num_bytes = sum(weight.numel() * weight.element_size() for weight in trained)
    is_dense = all(weight.is_contiguous() or _is_channels_last(weight) for weight in trained)
    are_float32 = {weight.dtype for weight in trained} == {torch.float32}  # as BatchNorm's statistics are
    return world.size > 1 and world.device.type == "cpu" and num_bytes <= MAX_BYTES and is_dense and are_float32


def _broadcast_weights(module: nn.Module) -> None:
    """Broadcast the weights of rank 0: a network may initialize them differently on each rank."""
    with torch.no_grad():
        for weight in module.parameters():
            value = weight.contiguous()
            dist.broadcast(value, src=0)
            weight.copy_(value)


def _is_channels_last(weight: torch.Tensor) -> bool:
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
