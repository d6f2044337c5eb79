"""Counts the floating-point operations of a training step, for the share of the GPUs' peak that a run reaches (MFU).

Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, https://arxiv.org/abs/2204.02311, appendix B.
"""

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distrain.config import Recipe
from distrain.distributed.world import World
from distrain.system.gpu_peaks import Arithmetic, find_peak_flops
from distrain.tensors.preserve_state import preserve_state

log = logging.getLogger(__name__)


def peak_share_of_sample(recipe: Recipe, model: nn.Module, images: torch.Tensor, world: World) -> float | None:
    """Return the seconds that the GPUs of the run would need for a sample at their peak.

    Times samples per second it is the run's model FLOPs utilization. `images` are a few samples as the network gets
    them. None on CPUs, on GPUs whose peak is not known, and for networks whose operations cannot be counted.
    """
    if world.device.type != "cuda":
        return None
    arithmetic: Arithmetic = "tf32" if recipe.precision == "fp32" and recipe.has_tf32 else recipe.precision
    peak = find_peak_flops(torch.cuda.get_device_name(world.device), arithmetic)
    flops = None if peak is None else count_flops(model, images)
    return None if peak is None or flops is None else flops / (peak * world.size * world.num_devices)


def count_flops(model: nn.Module, images: torch.Tensor) -> float | None:
    """Return the FLOPs of forward and backward pass for a sample; None where they cannot be counted.

    torch counts matrix products, convolutions and attention; a product and its addition are two operations. The passes
    run on a copy whose tensors have no data, so that nothing is computed, drawn or changed. `images` [n, channels,
    height, width] may be on any device; only their shape counts.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, which takes a tenth of a second

    tensors = [*model.parameters(), *model.buffers()]
    without_data = {id(tensor): _without_data(tensor) for tensor in tensors}
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    try:
        with preserve_state(nn.Module()):  # the generators, from which the network's own code may draw
            network = copy.deepcopy(model, without_data).train()
            with counter:
                outputs = network(torch.empty(images.shape, dtype=images.dtype, device="meta"))
                outputs.sum().backward()
    except Exception as error:  # noqa: BLE001 - code that looks at values, or a custom operator, may raise anything
        log.debug("the operations of the network are not counted: %s", error)
        return None
    return counter.get_total_flops() / len(images)


def _convolution_backward(
    grad_shape: Sequence[int],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *others: Any,
    out_shape: Any,  # noqa: ARG001 - torch passes it
) -> int:
    """Return the FLOPs of a convolution's backward pass: each of its gradients costs as much as the forward pass.

    torch's own formula for the gradient of the weights does not know groups. `others` are the remaining arguments of
    the operator.
    """
    is_transposed, output_mask = others[4], others[7]
    positions = input_shape if is_transposed else grad_shape
    num_gradients: int = sum(output_mask[:2])  # of input and weights
    return 2 * positions[0] * math.prod(positions[2:]) * math.prod(weight_shape) * num_gradients


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
