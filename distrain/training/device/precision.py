"""Sets the arithmetic of a device: precision, the loss scaling that float16 needs, memory format."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn

from distrain.config import Recipe
from distrain.errors import RecipeError
from distrain.tensors.autocast import DTYPES, autocast
from distrain.tensors.dtensor import full_tensor, is_sharded, local_shard, mixing_sharded
from distrain.training.optim.optimizer import begin_momentum, update
from distrain.training.step_watch import norms_of

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
        clip_norm: float | None,
        is_recorded: bool = False,
    ) -> list[torch.Tensor]:
        """Clip the gradient's 2-norm to `clip_norm` and update the weights; float16 overflow skips the update.

        With `is_recorded`, keep the norm of the whole gradient for `pop_gradient_norm`; all ranks then do the same.

        Returns the 2-norms of the gradients before that, by weight, of sharded ones those of this rank's parts. They
        are omitted on a CPU without clipping, and where loss scaling has looked whether the gradients are finite.
        """
        if not self._scaler.is_enabled():
            if is_recorded:
                self._gradient_norm = gradient_norm(weights)
            norms = []
            if clip_norm is not None:
                norms = clip_gradients(weights, clip_norm)
            elif self._device_type != "cpu":
                norms = gradient_norms(weights)
            update(optimizer)
            return norms
        if all(weight.grad is None for weight in weights):  # torch's scaler refuses a step without gradients
            return []
        with mixing_sharded(weights):
            if clip_norm is not None:
                self._scaler.unscale_(optimizer)
            if is_recorded and (norm := gradient_norm(weights)) is not None:
                self._gradient_norm = (
                    norm if clip_norm is not None else norm / self._scaler.scale(torch.ones_like(norm))
                )
            if clip_norm is not None:
                clip_gradients(weights, clip_norm)
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
