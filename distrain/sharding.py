"""Owns the one question about sharded tensors: is this one, and which part of it does this rank have."""

import torch
from torch import nn


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a `DTensor`, of which each rank has a part."""
    if type(tensor) in {torch.Tensor, nn.Parameter, nn.Buffer}:
        return False
    from torch.distributed.tensor import DTensor  # takes a second to import: only where it may be one

    return isinstance(tensor, DTensor)


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a sharded tensor that this rank has, or the tensor itself: both share the memory."""
    tensor = tensor.detach()
    part: torch.Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor gathered from all ranks, which call this together, or the tensor itself."""
    gathered: torch.Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return gathered
