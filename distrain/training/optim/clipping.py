"""Clips gradients before the update: by their norm, by value, or adaptively; and computes their norms."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from distrain.config import Train
from distrain.config.parameter_patterns import prefixes
from distrain.tensors.dtensor import full_tensor, is_sharded, local_shard
from distrain.training.step_watch import norms_of

# Clips the gradients of the weights, and returns what `gradient_norms` does, of the gradients as they were before.
# Where they are sharded the ranks call it together.
Clip = Callable[[Sequence[nn.Parameter]], list[torch.Tensor]]

_MIN_WEIGHT_NORM = 1e-3  # of a unit that is 0; the paper's and timm's
_MIN_GRADIENT_NORM = 1e-6


def build_clipping(train: Train, model: nn.Module, *, heads: Sequence[str]) -> Clip | None:
    """Return the clipping of a recipe; `heads` are the paths of the network's heads."""
    if train.clip_norm is not None:
        return partial(clip_gradients, clip_norm=train.clip_norm)
    if train.clip_value is not None:
        return partial(clip_by_value, limit=train.clip_value)
    if train.agc is None:
        return None
    of_heads = {w for name, w in model.named_parameters() if any(head in prefixes(name) for head in heads)}
    return partial(clip_adaptively, factor=train.agc, without=of_heads)


@torch.no_grad()
def clip_by_value(weights: Sequence[nn.Parameter], limit: float) -> list[torch.Tensor]:
    """Do what torch's `clip_grad_value_` does: set larger values of gradients to the limit."""
    norms = gradient_norms(weights)
    if gradients := [local_shard(weight.grad) for weight in weights if weight.grad is not None]:
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)
    return norms


@torch.no_grad()
def clip_adaptively(
    weights: Sequence[nn.Parameter],
    factor: float,
    *,
    without: frozenset[nn.Parameter] | set[nn.Parameter] = frozenset(),
) -> list[torch.Tensor]:
    """Scale down the gradient of each unit whose norm is above `factor` times the norm of the unit's weights.

    A unit is what gives one output: a row of a matrix, a kernel; of a vector it is the whole. Brock et al.,
    "High-performance large-scale image recognition without normalization", 2021, https://arxiv.org/abs/2102.06171, in
    timm's form. The weights in `without` are not clipped, as the paper does for the last layer.
    """
    norms = gradient_norms(weights)
    for weight in weights:
        if weight.grad is None or weight in without:
            continue
        gradient = weight.grad.detach()
        largest = _unit_norms(weight.detach()).clamp(min=_MIN_WEIGHT_NORM) * factor
        norm = _unit_norms(gradient)
        clipped = gradient * (largest / norm.clamp(min=_MIN_GRADIENT_NORM))
        gradient.copy_(torch.where(norm < largest, gradient, clipped))
    return norms


def _unit_norms(tensor: torch.Tensor) -> torch.Tensor:
    units = tuple(range(1, tensor.ndim)) or None
    norms: torch.Tensor = tensor.norm(2.0, dim=units, keepdim=units is not None)
    return norms


def gradient_norms(weights: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """Return the 2-norm of each gradient there is, of sharded ones that of this rank's part."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if any(type(gradient) is not torch.Tensor for gradient in gradients):
        gradients = [local_shard(gradient) for gradient in gradients]
    return norms_of(gradients)


@torch.no_grad()
def gradient_norm(weights: Sequence[nn.Parameter]) -> torch.Tensor | None:
    """Return the 2-norm of the whole gradient, None without one; where it is sharded the ranks call it together."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients or any(is_sharded(gradient) for gradient in gradients):
        return _whole_norm(gradients)
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms_of(gradients)))  # as torch's, with less bookkeeping
    return norm


@torch.no_grad()
def clip_gradients(weights: Sequence[nn.Parameter], clip_norm: float) -> list[torch.Tensor]:
    """Do what torch's `clip_grad_norm_` does, to the bit, without its bookkeeping where the gradients are all alike.

    Returns what `gradient_norms` does, of the gradients as they were before.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    kinds = {(type(gradient), gradient.dtype, gradient.device) for gradient in gradients}
    if len(kinds) != 1 or kinds.pop()[0] is not torch.Tensor:  # weights in parts, for example
        norms = gradient_norms(weights)
        _clip_mixed(gradients, clip_norm)
        return norms
    norms = list(torch._foreach_norm(gradients))
    norm = torch.linalg.vector_norm(torch.stack(norms))
    factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    if factor.device.type != "cpu" or float(factor) != 1:  # elsewhere to look at it would synchronise the device
        torch._foreach_mul_(gradients, factor)
    return norms


def _clip_mixed(gradients: Sequence[torch.Tensor], clip_norm: float) -> None:
    """Clip gradients of several kinds, those that are in parts by the norm of the whole; the ranks call it together."""
    norm = _whole_norm(gradients)
    if norm is None:
        return
    factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local_shard(gradient).mul_(factor.to(gradient.device))


def _whole_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return the 2-norm over all gradients, of sharded ones over the parts of all ranks; None if there are none."""
    parts = [gradient for gradient in gradients if is_sharded(gradient)]
    others = [gradient for gradient in gradients if not is_sharded(gradient)]
    norms = [full_tensor(nn.utils.get_total_norm(kind)) for kind in (parts, others) if kind]
    if not norms:
        return None
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
