"""Owns numbers on a device: their precision, the loss scaling that float16 gradients need, their order in memory."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from distrain.optim import begin_momentum, update
from distrain.recipe import Recipe

_NO_CONTEXT: AbstractContextManager[Any] = nullcontext()


MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def set_tf32(recipe: Recipe, device: torch.device) -> None:
    """Let a GPU round the inputs of float32 convolutions and matrix products to TF32, or not, as the recipe says.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = recipe.has_tf32
        torch.backends.cudnn.allow_tf32 = recipe.has_tf32


def place(network: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """Return a network on its device, its weights in the recipe's memory format.

    FSDP wants contiguous weights: with it, images alone bring the format in.
    """
    if recipe.compute.memory_format == "contiguous" or recipe.parallel.strategy == "fsdp":
        return network.to(device)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


class Precision:
    """The arithmetic of forward and backward passes; weights and optimizer state stay float32."""

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        self._device_type = device.type
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return _NO_CONTEXT if self._dtype is None else torch.autocast(self._device_type, self._dtype)

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass of a loss, scaled where gradients are float16."""
        self._scaler.scale(loss).backward() if self._scaler.is_enabled() else loss.backward()  # type: ignore[no-untyped-call]

    def step(
        self, optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter], *, clip_norm: float | None
    ) -> None:
        """Clip the gradient's 2-norm to `clip_norm` and update the weights; float16 overflow skips the update."""
        if clip_norm is not None:
            if self._scaler.is_enabled():
                self._scaler.unscale_(optimizer)
            clip_gradients(weights, clip_norm)
        if self._scaler.is_enabled():
            begin_momentum(optimizer)
            self._scaler.step(optimizer)
            self._scaler.update()
        else:
            update(optimizer)

    def state(self) -> dict[str, Any]:
        """Return the loss scale and its history, as numbers that JSON keeps exactly."""
        return self._scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with a saved loss scale."""
        if self._scaler.is_enabled() and state:
            self._scaler.load_state_dict(state)


@torch.no_grad()
def clip_gradients(weights: Sequence[nn.Parameter], clip_norm: float) -> None:
    """Do what torch's `clip_grad_norm_` does, to the bit, without its bookkeeping where the gradients are all alike."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    kinds = {(type(gradient), gradient.dtype, gradient.device) for gradient in gradients}
    if len(kinds) != 1 or kinds.pop()[0] is not torch.Tensor:  # weights in parts, say
        nn.utils.clip_grad_norm_(weights, clip_norm)
        return
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    if factor.device.type != "cpu" or float(factor) != 1:  # elsewhere to look at it would synchronise the device
        torch._foreach_mul_(gradients, factor)
