"""Owns passes through a network that leave it as it was, and what the first of them says of images and outputs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from distrain.errors import ModelError
from distrain.references import is_reference


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Give back, after passes in any mode, the modes and buffers of a network, and torch's random numbers."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    may_search = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # no search for the fastest kernels of a batch that never comes again
    try:
        with torch.random.fork_rng(devices={weight.device.index for weight in model.parameters() if weight.is_cuda}):
            yield
    finally:
        torch.backends.cudnn.benchmark = may_search
        for module, was_training in modes:
            module.training = was_training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def check_outputs(model: nn.Module, images: torch.Tensor, *, name: str, num_outputs: int) -> None:
    """Raise `ModelError` where a network does not take `images`, or does not give `num_outputs` numbers for each.

    `images` float32 [n, channels, height, width] are some as the network gets them in evaluation, on its device. What
    the user's own network raises is not translated.
    """
    try:
        with undisturbed(model), torch.no_grad():
            outputs = model.eval()(images)
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_reference(name):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(
            f"model.name={name} does not take images of {_by(images.shape[1:])} ({reason}); make them "
            f"what it takes in augment.train and augment.eval"
        ) from error
    if not isinstance(outputs, torch.Tensor):
        seen = f"a {type(outputs).__name__}"
    elif outputs.shape != (len(images), num_outputs) or not outputs.is_floating_point():
        seen = f"{str(outputs.dtype).removeprefix('torch.')} {list(outputs.shape)} for {len(images)} samples"
    else:
        return
    raise ModelError(f"model.name={name} gives {seen}; return a floating-point tensor [samples, {num_outputs}]")


def _by(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
