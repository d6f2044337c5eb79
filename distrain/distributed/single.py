"""Trains in one process: on one device, or on several with DataParallel."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from distrain.data.loading.sampler import GlobalBatch
from distrain.tensors.autocast import autocast

_NO_CONTEXT: AbstractContextManager[None] = nullcontext()


class SingleProcess:
    """Runs the network unwrapped; with several GPUs, DataParallel splits each forward pass across them.

    The weights stay on the first GPU and keep their names, so that checkpoints are the same as for other strategies.
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
        """Return the module to call."""
        return self._replica

    def micro_batch(self, global_batch: GlobalBatch, index: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return an empty context: autograd accumulates the gradients."""
        return _NO_CONTEXT

    def finish_step(self, global_batch: GlobalBatch, step: int) -> None:
        """Do nothing: this rank has processed the entire global batch."""

    def zero_grad(self) -> None:
        """Discard the gradients."""
        for parameter in self._parameters:
            parameter.grad = None  # like zero_grad, without its profiler overhead

    def close(self) -> None:
        """Do nothing: there are no resources to release."""


class _Autocasting(nn.Module):
    """A network that enters autocast in the thread that calls it.

    The dtype of autocast is a per-thread setting. DataParallel enables autocast in its threads, but not with the
    same dtype: they would compute in float16.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network = network
        self._dtype = dtype

    def forward(self, images: torch.Tensor) -> Any:  # networks may return any type
        """Call the network."""
        with autocast(self._dtype, images.device.type):
            return self.network(images)
