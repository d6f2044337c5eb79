"""Owns FSDP2: every rank keeps a part of each weight, gradient and optimizer state, and gathers a block's to use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from distrain.data.order import Window
from distrain.parallel.statistics import BatchStatistics
from distrain.world import World


class Fsdp:
    """torch's `fully_shard` on each block of the network and on the whole of it.

    Every forward and backward pass is a collective call: a rank that has fewer micro-batches than others goes through
    the network with `example` and weight 0 instead.
    """

    needs_even_passes = True

    def __init__(self, module: nn.Module, world: World, example: torch.Tensor) -> None:
        self.module = module
        self.loss_scale = world.size
        self._world = world
        self._example = example
        _shard(module, init_device_mesh(world.device.type, (world.size,)))
        self._sharded = cast("FSDPModule", module)
        self._parameters = list(module.parameters())
        self._statistics = BatchStatistics(module)
        self._num_passes = 0

    def begin_window(self, window: Window, step: int) -> nn.Module:  # noqa: ARG002 - the protocol's signature
        """Return the network."""
        self._num_passes = -(-window.num_pieces // self._world.size)
        return self.module

    @contextmanager
    def micro_batch(self, window: Window, piece: int) -> Iterator[None]:
        """Reduce gradients in the last pass only."""
        self._sharded.set_requires_gradient_sync(piece - window.own[0] == self._num_passes - 1)
        yield

    def finish_window(self, window: Window, step: int) -> None:  # noqa: ARG002
        """Join the passes in which this rank has no micro-batch, and average the statistics."""
        for number in range(len(window.own), self._num_passes):
            kept = [(tensor, tensor.clone()) for tensor in self.module.buffers()]
            self._sharded.set_requires_gradient_sync(number == self._num_passes - 1)
            (self.module(self._example).sum() * 0).backward()
            for tensor, before in kept:
                tensor.copy_(before)
        self._statistics.average(window, self._world)

    def drop_gradients(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None


def _shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every child with weights, the entries of a sequence one by one, then what is left."""
    for child in module.children():
        blocks = child.children() if isinstance(child, nn.Sequential | nn.ModuleList) else [child]
        for block in blocks:
            if any(parameter.requires_grad for parameter in block.parameters()):
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
