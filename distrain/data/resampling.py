"""Owns the transforms that resample an image, with draws of their own where they draw: resized crops, resizing.

They come in the two halves of `distrain.data.geometry`, for one image at a time: sizes differ from image to image.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as kernels

from distrain.data.geometry import Batched, Numbers, sample_keys
from distrain.data.order import MicroBatch
from distrain.seeds import uniform

_ATTEMPTS = 10  # as torchvision has them


class RandomResizedCrop:
    """`RandomResizedCrop` of torchvision, by the method of Szegedy et al., "Going deeper with convolutions", 2015."""

    def __init__(
        self, size: Sequence[int], scale: Sequence[float], ratio: Sequence[float], *, interpolation: Any, antialias: Any
    ) -> None:
        self._size = list(size)
        self._scale = scale
        self._ratio = ratio
        self._interpolation = interpolation
        self._antialias = antialias

    def draw(self, micro_batch: MicroBatch, *, seed: int, place: int) -> Numbers:
        """Return for each attempt share of the area, ratio of width to height, place down and across: [n, 10, 4]."""
        keys = sample_keys(micro_batch, seed=seed, place=place)
        numbers = uniform(keys, 4 * _ATTEMPTS).reshape(-1, _ATTEMPTS, 4)
        (least, most), (narrow, wide) = self._scale, (math.log(ratio) for ratio in self._ratio)
        numbers[..., 0] = least + numbers[..., 0] * (most - least)
        numbers[..., 1] = np.exp(narrow + numbers[..., 1] * (wide - narrow))
        return numbers

    def apply(self, image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """Return the crop in the size asked for."""
        top, left, height, width = self.box(image.shape[-2], image.shape[-1], numbers)
        cut = image[:, top : top + height, left : left + width]
        if image.stride(0) == 1:  # channels last, as decoders give them, and bytes are resized fastest so
            cut = cut.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return resize(cut, self._size, self._interpolation, self._antialias)

    def box(self, height: int, width: int, numbers: Numbers) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the crop of an image: the first attempt that lies within it."""
        for share, ratio, down, across in (attempt.tolist() for attempt in numbers):
            area = height * width * share
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(down * (height - h + 1)), int(across * (width - w + 1)), h, w
        h, w, (narrow, wide) = height, width, (min(self._ratio), max(self._ratio))
        if width / height < narrow:
            h = round(width / narrow)
        elif width / height > wide:
            w = round(height * wide)
        return (height - h) // 2, (width - w) // 2, h, w


class Resize:
    """`Resize` of torchvision, which draws nothing."""

    def __init__(self, size: Any, max_size: int | None, *, interpolation: Any, antialias: Any) -> None:
        self._size = size
        self._max_size = max_size
        self._interpolation = interpolation
        self._antialias = antialias

    def draw(self, micro_batch: MicroBatch, *, seed: int, place: int) -> Numbers:  # noqa: ARG002 - of the protocol
        """Return nothing for each sample: float64 [n, 0]."""
        return np.empty((len(micro_batch.indices), 0))

    def apply(self, image: torch.Tensor, numbers: Numbers) -> torch.Tensor:  # noqa: ARG002 - of the protocol
        """Return the image in the size asked for."""
        return resize(image, self._size, self._interpolation, self._antialias, max_size=self._max_size)


Own = Batched | RandomResizedCrop | Resize  # all transforms with draws of their own


def resize(
    image: torch.Tensor, size: Any, interpolation: Any, antialias: Any, *, max_size: int | None = None
) -> torch.Tensor:
    """Return an image [channels, height, width] resized by torchvision's kernel for tensors, without its dispatcher.

    It works on bytes as they are, where the processor can, and lets other threads run.
    """
    resized: torch.Tensor = kernels.resize_image(
        image, size, interpolation=interpolation, max_size=max_size, antialias=antialias
    )
    return resized


def from_torchvision(transform: Any) -> RandomResizedCrop | Resize | None:
    """Return the same transform with draws of its own; None for one that is none of these."""
    if type(transform) is v2.RandomResizedCrop:
        return RandomResizedCrop(
            transform.size,
            transform.scale,
            transform.ratio,
            interpolation=transform.interpolation,
            antialias=transform.antialias,
        )
    if type(transform) is v2.Resize:
        return Resize(
            transform.size,
            transform.max_size,
            interpolation=transform.interpolation,
            antialias=transform.antialias,
        )
    return None
