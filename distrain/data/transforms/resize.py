"""Resizes images, and crops and resizes them, with draws that are functions of the sample.

Each has the two halves described in `geometric`, for one image at a time, since sizes differ.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as kernels

from distrain.data.loading.sampler import MicroBatch
from distrain.data.transforms.geometric import Batched, Numbers, sample_keys
from distrain.rng import uniform

_RESIZES_BYTES = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}  # others are faster through float32
_RESIZE_INTO = torch.ops.aten._upsample_bilinear2d_aa.out  # what F.interpolate calls, which takes no place to write to
_ATTEMPTS = 10  # as torchvision has them


class _Resizer:
    """Resizes an image by torchvision's kernel for tensors, without its dispatcher.

    It works on bytes as they are, where the processor can, and lets other threads run. For bytes with their channels
    last torch's own kernel is called at once: what torchvision does around it takes half as long again.
    """

    def __init__(self, interpolation: Any, antialias: Any) -> None:
        self._interpolation = interpolation
        self._antialias = antialias
        is_bilinear = interpolation in {v2.InterpolationMode.BILINEAR, "bilinear"}
        self._is_of_torch = _RESIZES_BYTES and is_bilinear and antialias is True

    def __call__(
        self,
        image: torch.Tensor,
        size: Any,
        *,
        box: tuple[int, int, int, int] | None = None,
        max_size: int | None = None,
        place: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return an image [channels, height, width], or a box of it, in a size; its channels stay where they are.

        `box` is top, left, height, width. The result is `place` where it could be written there.
        """
        is_last = image.stride(0) == 1  # the channels, as decoders give them, and bytes are resized fastest so
        if is_last and self._is_of_torch and image.dtype == torch.uint8 and image.is_cpu and size and len(size) == 2:
            return _resize_bytes(image.numpy().transpose(1, 2, 0), box, list(size), place)
        if box is not None:
            top, left, height, width = box
            image = image[:, top : top + height, left : left + width]
        if is_last:
            image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        resized: torch.Tensor = kernels.resize_image(
            image, size, interpolation=self._interpolation, max_size=max_size, antialias=self._antialias
        )
        return resized


def _resize_bytes(
    pixels: NDArray[np.uint8], box: tuple[int, int, int, int] | None, size: list[int], place: torch.Tensor | None
) -> torch.Tensor:
    """Resize pixels [height, width, channels]; numpy cuts them, for each view of torch's would let other threads in."""
    if box is not None:
        top, left, height, width = box
        pixels = pixels[top : top + height, left : left + width]
    pixels = np.ascontiguousarray(pixels)
    height, width, channels = pixels.shape
    if [height, width] == size:
        return torch.from_numpy(pixels.transpose(2, 0, 1))
    # With the strides of a batch by which torch knows that channels are last.
    batch = torch.from_numpy(pixels.reshape(1, height, width, channels).transpose(0, 3, 1, 2))
    if place is None or place.shape != (channels, *size) or place.dtype != torch.uint8 or place.stride(0) != 1:
        return F.interpolate(batch, size, mode="bilinear", antialias=True).squeeze(0)
    _RESIZE_INTO(batch, size, False, None, None, out=place.unsqueeze(0))  # noqa: FBT003 - torch takes no name for it
    return place


class RandomResizedCrop:
    """`RandomResizedCrop` of torchvision, by the method of Szegedy et al., "Going deeper with convolutions", 2015."""

    def __init__(
        self, size: Sequence[int], scale: Sequence[float], ratio: Sequence[float], *, interpolation: Any, antialias: Any
    ) -> None:
        self._size = list(size)
        self._scale = scale
        self._ratio = ratio
        self._resize = _Resizer(interpolation, antialias)

    def draw(self, micro_batch: MicroBatch, *, seed: int, place: int) -> Numbers:
        """Return for each attempt share of the area, ratio of width to height, place down and across: [n, 10, 4]."""
        keys = sample_keys(micro_batch, seed=seed, place=place)
        numbers = uniform(keys, 4 * _ATTEMPTS).reshape(-1, _ATTEMPTS, 4)
        (least, most), (narrow, wide) = self._scale, (math.log(ratio) for ratio in self._ratio)
        numbers[..., 0] = least + numbers[..., 0] * (most - least)
        numbers[..., 1] = np.exp(narrow + numbers[..., 1] * (wide - narrow))
        return numbers

    def apply(self, image: torch.Tensor, numbers: Numbers, place: torch.Tensor | None = None) -> torch.Tensor:
        """Return the crop in the requested size; that is `place`, if it could be written there."""
        return self._resize(image, self._size, box=self.box(image.shape[-2], image.shape[-1], numbers), place=place)

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
        self._resize = _Resizer(interpolation, antialias)

    def draw(self, micro_batch: MicroBatch, *, seed: int, place: int) -> Numbers:  # noqa: ARG002 - of the protocol
        """Return nothing for each sample: float64 [n, 0]."""
        return np.empty((len(micro_batch.indices), 0))

    def apply(
        self,
        image: torch.Tensor,
        numbers: Numbers,  # noqa: ARG002 - of the protocol
        place: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the image in the requested size; that is `place`, if it could be written there."""
        return self._resize(image, self._size, max_size=self._max_size, place=place)


Resampling = RandomResizedCrop | Resize
Own = Batched | Resampling  # all transforms with draws of their own


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
