"""Trains with FSDP2: each rank keeps a shard of weights, gradients and optimizer state, and gathers what it uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from distrain.data.loading.sampler import GlobalBatch
from distrain.distributed.batchnorm_stats import BatchStatistics, average_together
from distrain.distributed.extra_state import ExtraState
from distrain.distributed.world import World
from distrain.models.blocks import divide
from distrain.tensors.autocast import autocast
from distrain.tensors.module_state import preserve_buffers


class Fsdp:
    """Applies torch's `fully_shard` to each block of the network and to the network.

    With an autocast `dtype`, weights are cast to it before they are gathered, which rounds them as autocast would;
    gradients are summed in float32. Vectors (biases, weights of norm layers, scales) are then not sharded, because
    autocast keeps them in float32 or because they are tiny: every rank has the full tensors. The same holds for the
    weights from which weight_norm, spectral_norm or a parametrization computes the weights of a layer.

    Every forward and backward pass is a collective call: a rank with fewer micro-batches than others makes the
    remaining passes with `example` and a loss of weight 0.
    """

    name = "fsdp"
    forward_is_collective = True

    def __init__(
        self,
        module: nn.Module,
        world: World,
        example: torch.Tensor,
        *,
        extra: ExtraState | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.module = module
        self._extra = extra or ExtraState(module)
        self.loss_scale = world.size
        self._world = world
        self._example = example
        self._dtype = dtype
        vectors = [] if dtype is None else _unsharded(module)
        self._vectors = [weight for weight in vectors if weight.requires_grad]
        for vector in vectors:  # a network may initialize them differently on each rank
            dist.broadcast(vector.detach(), src=0)
        _shard(module, world, dtype=dtype, unsharded=set(vectors))
        self._sharded = cast("FSDPModule", module)
        self._parameters = list(module.parameters())
        self._statistics = BatchStatistics(module)
        self._num_passes = 0

    def begin_step(self, global_batch: GlobalBatch, step: int) -> nn.Module:  # noqa: ARG002 - the protocol's signature
        """Return the network."""
        self._statistics.begin()
        self._num_passes = -(-global_batch.num_micro_batches // self._world.size)
        return self.module

    @contextmanager
    def micro_batch(self, global_batch: GlobalBatch, index: int) -> Iterator[None]:
        """Reduce gradients only in the last pass."""
        self._sharded.set_requires_gradient_sync(index - global_batch.local[0] == self._num_passes - 1)
        yield

    def finish_step(self, global_batch: GlobalBatch, step: int) -> None:  # noqa: ARG002
        """Join the passes in which this rank has no micro-batch, and average what FSDP does not average."""
        for number in range(len(global_batch.local), self._num_passes):
            self._sharded.set_requires_gradient_sync(number == self._num_passes - 1)
            with preserve_buffers(self.module), self._extra.preserved():
                with autocast(self._dtype, self._world.device.type):
                    outputs = self.module(self._example)
                tensors = [tensor for tensor in tree_leaves(outputs) if isinstance(tensor, torch.Tensor)]
                torch.autograd.backward([tensor.sum() * 0 for tensor in tensors if tensor.requires_grad])
        self._average_vectors()
        self._statistics.average(global_batch, self._world)

    def zero_grad(self) -> None:
        """Discard the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def _average_vectors(self) -> None:
        """Average the gradients of the unsharded weights."""
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for weight in self._vectors:
            if weight.grad is not None:
                by_dtype.setdefault(weight.dtype, []).append(weight.grad)
        for gradients in by_dtype.values():
            average_together(gradients, size=self._world.size)


def _shard(module: nn.Module, world: World, *, dtype: torch.dtype | None, unsharded: set[nn.Parameter]) -> None:
    """Shard every block, then the remaining weights; frozen ones too, since they also need memory."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy()
    if dtype is not None:
        # Activations keep the dtype that autocast gives them.
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # A list of parametrizations has no forward pass of its own: earlier versions of torch refuse to shard it.
    parts = [part for part in divide(module) if not isinstance(part, nn.ModuleList)]
    for part in (*parts, module):
        fully_shard(part, mesh=mesh, mp_policy=policy, ignored_params=unsharded)


def _unsharded(module: nn.Module) -> list[nn.Parameter]:
    """Return the vectors, and the weights from which a layer computes its weights in float32, together with buffers."""
    parts = [part for part in module.modules() if _computes_weights(part)]
    sources = {weight for part in parts for weight in part.parameters()}
    return [weight for weight in module.parameters() if _is_vector(weight) or weight in sources]


def _computes_weights(part: nn.Module) -> bool:
    """Whether a layer has parametrizations, or weight_norm or spectral_norm as the older hooks."""
    hooks = part._forward_pre_hooks.values()
    return is_parametrized(part) or any(isinstance(hook, WeightNorm | SpectralNorm) for hook in hooks)


def _is_vector(weight: torch.Tensor) -> bool:
    return weight.numel() == max(weight.shape, default=1)
