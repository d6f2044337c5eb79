"""Sets the arithmetic of a device: precision, the loss scaling that float16 needs, memory format."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn

from distrain.config import Recipe
from distrain.errors import RecipeError
from distrain.tensors.autocast import DTYPES, autocast
from distrain.tensors.dtensor import mixing_sharded
from distrain.training.optim.clipping import Clip, gradient_norm, gradient_norms
from distrain.training.optim.optimizer import begin_momentum, update

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def set_tf32(recipe: Recipe, device: torch.device) -> None:
    """Let a GPU round the inputs of float32 convolutions and matrix products to TF32, or not, as the recipe says.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = recipe.has_tf32
        torch.backends.cudnn.allow_tf32 = recipe.has_tf32


def to_device(network: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """Return a network on its device, its weights in the recipe's memory format.

    FSDP wants contiguous weights: with it, images alone bring the format in.
    """
    if recipe.compute.memory_format == "contiguous" or recipe.parallel.strategy == "fsdp":
        return network.to(device)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


class Precision:
    """The arithmetic of forward and backward passes; weights and optimizer state stay float32."""

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        """Raise `RecipeError` for bf16 on a GPU that has no arithmetic for it: its libraries would fail in a step."""
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            major, minor = torch.cuda.get_device_capability(device)
            raise RecipeError(
                "precision=bf16 needs a GPU of compute capability 8.0 or above, and "
                f"{torch.cuda.get_device_name(device)} has {major}.{minor}; use precision=fp16 or fp32"
            )
        self._device_type = device.type
        self._dtype = DTYPES[name]
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        self._gradient_norm: torch.Tensor | float | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return autocast(self._dtype, self._device_type)

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass of a loss, scaled where gradients are float16."""
        self._scaler.scale(loss).backward() if self._scaler.is_enabled() else loss.backward()  # type: ignore[no-untyped-call]

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[nn.Parameter],
        *,
        clip: Clip | None,
        is_recorded: bool = False,
    ) -> list[torch.Tensor]:
        """Clip the gradient and update the weights; float16 overflow skips the update.

        With `is_recorded`, keep the norm of the whole gradient for `pop_gradient_norm`; all ranks then do the same.

        Returns the 2-norms of the gradients before that, by weight, of sharded ones those of this rank's parts. They
        are omitted on a CPU without clipping, and where loss scaling has looked whether the gradients are finite.
        """
        if not self._scaler.is_enabled():
            if is_recorded:
                self._gradient_norm = gradient_norm(weights)
            norms = []
            if clip is not None:
                norms = clip(weights)
            elif self._device_type != "cpu":
                norms = gradient_norms(weights)
            update(optimizer)
            return norms
        if all(weight.grad is None for weight in weights):  # torch's scaler refuses a step without gradients
            return []
        with mixing_sharded(weights):
            if clip is not None:
                self._scaler.unscale_(optimizer)
            if is_recorded and (norm := gradient_norm(weights)) is not None:
                self._gradient_norm = norm if clip is not None else norm / self._scaler.scale(torch.ones_like(norm))
            if clip is not None:
                clip(weights)
            begin_momentum(optimizer)
            self._scaler.step(optimizer)
            self._scaler.update()
        return []

    @property
    def gradient_norm(self) -> float | None:
        """The norm that waits for a record; waits for the device, as the losses of a record have done before."""
        return None if self._gradient_norm is None else float(self._gradient_norm)

    def pop_gradient_norm(self) -> float | None:
        """Return the 2-norm of the whole gradient in the recorded step, before clipping; None if none is known."""
        norm, self._gradient_norm = self.gradient_norm, None
        return norm

    def load_gradient_norm(self, norm: float | None) -> None:
        """Restore the norm of a step whose record is still due."""
        self._gradient_norm = norm

    def state(self) -> dict[str, Any]:
        """Return the loss scale and its history, as numbers that JSON keeps exactly."""
        return self._scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a saved loss scale."""
        if self._scaler.is_enabled() and state:
            self._scaler.load_state_dict(state)
