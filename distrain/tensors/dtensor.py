"""Handles sharded tensors: whether one is sharded, which part this rank has, and what its network sees."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

_NO_CONTEXT: AbstractContextManager[Any] = nullcontext()


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a `DTensor`, of which each rank has a part."""
    if type(tensor) in {torch.Tensor, nn.Parameter, nn.Buffer}:
        return False
    from torch.distributed.tensor import DTensor  # takes a second to import

    return isinstance(tensor, DTensor)


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a sharded tensor that this rank has, or the tensor itself: both share the memory."""
    tensor = tensor.detach()
    part: torch.Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def with_local_shard(tensor: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor like `tensor` of which this rank has `part`, on any device."""
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a full tensor, equal on all ranks, sharded as `like` is; the ranks call this together."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor, like.device_mesh, like.placements)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor gathered from all ranks, which call this together, or the tensor itself."""
    gathered: torch.Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return gathered


def mixing_sharded(tensors: Sequence[torch.Tensor]) -> AbstractContextManager[Any]:
    """Return a context in which operations can mix sharded tensors with others that are equal on all ranks."""
    if len({is_sharded(tensor) for tensor in tensors}) < 2:
        return _NO_CONTEXT
    from torch.distributed.tensor.experimental import implicit_replication

    return implicit_replication()


def reshard(module: nn.Module) -> None:
    """Free the weights that FSDP has gathered in `module`, so that its next pass gathers them again from the shards.

    After a forward pass the root of a network keeps its weights gathered for the backward pass, and `parameters()`
    returns those. Without a backward pass, as in evaluation, they would remain gathered: the next pass would not see
    values written into the shards, and an update or clipping of `parameters()` would miss the gradients. Other networks
    are not changed.
    """
    if "torch.distributed.fsdp" not in sys.modules:  # importing it takes a second
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
