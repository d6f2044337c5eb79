"""Trains in one process: on one device, or on several with DataParallel."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from distrain.data.loading.sampler import GlobalBatch
from distrain.tensors.autocast import autocast

_NO_CONTEXT: AbstractContextManager[None] = nullcontext()


class SingleProcess:
    """The network as it is; with several GPUs, each forward pass is split over them by DataParallel.

    The weights stay on the first GPU and keep their names, so that checkpoints are those of any other strategy.
    """

    name = "single"
    loss_scale = 1
    forward_is_collective = False

    def __init__(self, module: nn.Module, *, num_devices: int = 1, dtype: torch.dtype | None = None) -> None:
        self.module = module
        self._replica = module
        if num_devices > 1:
            self._replica = nn.DataParallel(_Autocasting(module, dtype), device_ids=list(range(num_devices)))
        self._parameters = list(module.parameters())

    def begin_step(self, global_batch: GlobalBatch, step: int) -> nn.Module:  # noqa: ARG002 - the protocol's signature
        """Return what to call."""
        return self._replica

    def micro_batch(self, global_batch: GlobalBatch, index: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return an empty context: gradients add up by themselves."""
        return _NO_CONTEXT

    def finish_step(self, global_batch: GlobalBatch, step: int) -> None:
        """Do nothing: this rank has seen the whole global batch."""

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None  # what zero_grad does, without its bookkeeping for profilers

    def close(self) -> None:
        """Do nothing: there is nothing of its own to give back."""


class _Autocasting(nn.Module):
    """A network that enters autocast by itself, in whatever thread it is called.

    The dtype of autocast is a setting of a thread. DataParallel hands on to its threads that autocast is on, and not
    which dtype it has: they would compute in float16.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network = network
        self._dtype = dtype

    def forward(self, images: torch.Tensor) -> Any:  # a network's answer is its own affair
        """Call the network."""
        with autocast(self._dtype, images.device.type):
            return self.network(images)
