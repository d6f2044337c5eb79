"""Resizes images, or crops and resizes them, with random draws that are functions of the sample.

Each transform has the two steps described in `geometric`, for one image at a time, since sizes differ.
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
from distrain.data.transforms.geometric import Batched, Draws, sample_keys
from distrain.rng import uniform

_RESIZES_BYTES = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}  # others are faster through float32
_RESIZE_INTO = torch.ops.aten._upsample_bilinear2d_aa.out  # F.interpolate calls it, but has no argument `out`
_ATTEMPTS = 10  # as in torchvision


class _Resizer:
    """Resizes an image with torchvision's kernel for tensors, without its dispatcher.

    The kernel works on bytes where the processor supports it, and releases the GIL. For channels-last bytes torch's
    kernel is called directly: torchvision's code around it takes another 50% of the time.
    """

    def __init__(self, interpolation: Any, antialias: Any) -> None:
        self._interpolation = interpolation
        self._antialias = antialias
        is_bilinear = interpolation in {v2.InterpolationMode.BILINEAR, "bilinear"}
        self._uses_torch_kernel = _RESIZES_BYTES and is_bilinear and antialias is True

    def __call__(
        self,
        image: torch.Tensor,
        size: Any,
        *,
        box: tuple[int, int, int, int] | None = None,
        max_size: int | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return an image [channels, height, width], or a box of it, resized; its memory format is kept.

        `box` is top, left, height, width. The result is `out` where it could be written there.
        """
        is_channels_last = image.stride(0) == 1  # the format of decoders, and the fastest one for resizing bytes
        if (
            is_channels_last
            and self._uses_torch_kernel
            and image.dtype == torch.uint8
            and image.is_cpu
            and size
            and len(size) == 2
        ):
            return _resize_bytes(image.numpy().transpose(1, 2, 0), box, list(size), out)
        if box is not None:
            top, left, height, width = box
            image = image[:, top : top + height, left : left + width]
        if is_channels_last:
            image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        resized: torch.Tensor = kernels.resize_image(
            image, size, interpolation=self._interpolation, max_size=max_size, antialias=self._antialias
        )
        return resized


def _resize_bytes(
    pixels: NDArray[np.uint8], box: tuple[int, int, int, int] | None, size: list[int], out: torch.Tensor | None
) -> torch.Tensor:
    """Resize pixels [height, width, channels]; crops them in numpy, since torch releases the GIL for each view."""
    if box is not None:
        top, left, height, width = box
        pixels = pixels[top : top + height, left : left + width]
    pixels = np.ascontiguousarray(pixels)
    height, width, channels = pixels.shape
    if [height, width] == size:
        return torch.from_numpy(pixels.transpose(2, 0, 1))
    # As a batch of one, with strides that torch recognises as channels last.
    batch = torch.from_numpy(pixels.reshape(1, height, width, channels).transpose(0, 3, 1, 2))
    if out is None or out.shape != (channels, *size) or out.dtype != torch.uint8 or out.stride(0) != 1:
        return F.interpolate(batch, size, mode="bilinear", antialias=True).squeeze(0)
    _RESIZE_INTO(batch, size, False, None, None, out=out.unsqueeze(0))  # noqa: FBT003 - positional-only in torch
    return out


class RandomResizedCrop:
    """`RandomResizedCrop` of torchvision, by the method of Szegedy et al., "Going deeper with convolutions", 2015."""

    def __init__(
        self, size: Sequence[int], scale: Sequence[float], ratio: Sequence[float], *, interpolation: Any, antialias: Any
    ) -> None:
        self._size = list(size)
        self._scale = scale
        self._ratio = ratio
        self._resize = _Resizer(interpolation, antialias)

    def draw(self, micro_batch: MicroBatch, *, seed: int, index: int) -> Draws:
        """Return for each attempt: share of the area, aspect ratio, relative position down and across: [n, 10, 4]."""
        keys = sample_keys(micro_batch, seed=seed, index=index)
        draws = uniform(keys, 4 * _ATTEMPTS).reshape(-1, _ATTEMPTS, 4)
        (min_share, max_share), (narrow, wide) = self._scale, (math.log(ratio) for ratio in self._ratio)
        draws[..., 0] = min_share + draws[..., 0] * (max_share - min_share)
        draws[..., 1] = np.exp(narrow + draws[..., 1] * (wide - narrow))
        return draws

    def apply(self, image: torch.Tensor, draws: Draws, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the crop in the requested size; the result is `out` where it could be written there."""
        return self._resize(image, self._size, box=self.box(image.shape[-2], image.shape[-1], draws), out=out)

    def box(self, height: int, width: int, draws: Draws) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the crop: the first attempt that fits into the image."""
        for share, ratio, down, across in (attempt.tolist() for attempt in draws):
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

    def draw(self, micro_batch: MicroBatch, *, seed: int, index: int) -> Draws:  # noqa: ARG002 - of the protocol
        """Return no draws: float64 [n, 0]."""
        return np.empty((len(micro_batch.indices), 0))

    def apply(
        self,
        image: torch.Tensor,
        draws: Draws,  # noqa: ARG002 - of the protocol
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the image in the requested size; the result is `out` where it could be written there."""
        return self._resize(image, self._size, max_size=self._max_size, out=out)


Resampling = RandomResizedCrop | Resize
AnySeeded = Batched | Resampling  # all transforms with seeded draws


def from_torchvision(transform: Any) -> RandomResizedCrop | Resize | None:
    """Return the same transform with seeded draws; None for a transform that this module does not have."""
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
