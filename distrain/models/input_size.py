"""Checks the size of images for networks whose linear layers have a fixed width."""

import torch

from distrain.errors import ModelError


def check_size(images: torch.Tensor, size: int, *, name: str) -> None:
    """Raise `ModelError` where images [n, channels, height, width] are not `size` pixels high and wide."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # sizes are tensors there
        return
    height, width = images.shape[-2:]
    if (height, width) != (size, size):
        raise ModelError(
            f"model.name={name} needs images of {size}x{size} pixels, but these have {height}x{width}; add "
            f"`Resize: {{size: [{size}, {size}]}}` to augment.train and augment.eval"
        )
