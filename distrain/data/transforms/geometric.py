"""Crops, flips and cutout, whose random draws are functions of the sample.

Each transform has two steps. `draw` returns its random numbers for many samples at once, as a pure function of (seed,
epoch, sample, copy, index in the list of transforms), without a generator. `apply` transforms one image with them as
torchvision.transforms.v2 would, and `apply_to_batch` many images of one size at once, to the same bits. On a GPU,
`to_parameters` converts the draws to integers on the host, so that those of all transforms are copied together, and
`apply_parameters` transforms the batch with them.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as kernels

from distrain.data.loading.sampler import MicroBatch
from distrain.messages import counted
from distrain.rng import Purpose, derive_keys, uniform

Draws = NDArray[np.float64]
Parameters = NDArray[np.int64]  # [k, n]: k integers for each of n samples
Size = tuple[int, int]  # height and width

_NO_PARAMETERS: Parameters = np.empty((0, 0), dtype=np.int64)


class Seeded(Protocol):
    """A transform whose draws depend on the sample; one that draws nothing returns arrays without columns."""

    def draw(self, micro_batch: MicroBatch, *, seed: int, index: int) -> Draws:
        """Return the draws of each sample of a micro-batch for this transform, the `index`th of its list: [n, ...]."""
        ...

    def apply(self, image: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return one image [channels, height, width] transformed by a row of `draw`; raises `ValueError`."""
        ...


class RandomCrop:
    """`RandomCrop` of torchvision, with its parsed arguments: `padding` is left, right, top, bottom."""

    def __init__(
        self, size: Sequence[int], padding: Sequence[int] | None, fill: float | list[float], mode: str
    ) -> None:
        self._height, self._width = size
        left, right, top, bottom = padding or (0, 0, 0, 0)
        self._padding = [left, top, right, bottom]
        self._fill = fill
        self._colour = _Constant(fill)
        self._mode = mode

    def draw(self, micro_batch: MicroBatch, *, seed: int, index: int) -> Draws:
        """Return the relative position of the crop, down and across, uniform in [0, 1): float64 [n, 2]."""
        return uniform(sample_keys(micro_batch, seed=seed, index=index), 2)

    def apply(self, image: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return the crop of the padded image."""
        padded = self._pad(image)
        (top,), (left,) = self._corners(padded.shape[-2:], draws[None])
        return padded[..., top : top + self._height, left : left + self._width]

    def apply_to_batch(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return the crops of the padded images [n, channels, height, width], which are on the CPU."""
        padded = self._pad(images)
        rows, columns = self._corners(padded.shape[-2:], draws)
        # numpy copies whole windows, in a tenth of torch's time
        windows = np.lib.stride_tricks.sliding_window_view(padded.numpy(), (self._height, self._width), axis=(2, 3))
        return torch.from_numpy(np.ascontiguousarray(windows[np.arange(len(rows)), :, rows, columns]))

    def to_parameters(self, draws: Draws, size: Size) -> tuple[Parameters, Size]:
        """Return the upper left corners of the crops in padded images."""
        left, top, right, bottom = self._padding
        corners = self._corners((size[0] + top + bottom, size[1] + left + right), draws)
        return np.stack(corners), (self._height, self._width)

    def apply_parameters(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return the crops of the padded images."""
        windows = self._pad(images).unfold(2, self._height, 1).unfold(3, self._width, 1)
        rows, columns = parameters
        return windows[torch.arange(len(images), device=images.device), :, rows, columns].contiguous()

    def _pad(self, images: torch.Tensor) -> torch.Tensor:
        if not any(self._padding):
            return images
        padded: torch.Tensor
        if isinstance(self._fill, list):  # torchvision would copy the colour to the GPU each time, and wait for it
            left, top, right, bottom = self._padding
            (height, width), colour = images.shape[-2:], self._colour.on(images)
            padded = colour.expand(*images.shape[:-2], height + top + bottom, width + left + right).clone()
            padded[..., top : top + height, left : left + width] = images
        else:
            padded = kernels.pad_image(images, self._padding, fill=self._fill, padding_mode=self._mode)
        return padded

    def _corners(self, padded: Sequence[int], draws: Draws) -> tuple[Parameters, Parameters]:
        height, width = padded
        if height < self._height or width < self._width:
            raise ValueError(
                f"RandomCrop: a crop of {self._height}x{self._width} is larger than the image, which is "
                f"{height}x{width} with its padding"
            )
        top, left = draws[:, 0] * (height - self._height + 1), draws[:, 1] * (width - self._width + 1)
        return top.astype(np.int64), left.astype(np.int64)


class CenterCrop:
    """`CenterCrop` of torchvision, which draws nothing."""

    def __init__(self, size: Sequence[int]) -> None:
        self._size = list(size)

    def draw(self, micro_batch: MicroBatch, *, seed: int, index: int) -> Draws:  # noqa: ARG002 - of the protocol
        """Return no draws: float64 [n, 0]."""
        return np.empty((len(micro_batch.indices), 0))

    def apply(self, image: torch.Tensor, draws: Draws) -> torch.Tensor:  # noqa: ARG002 - of the protocol
        """Return the centre of the image, with black borders where it is too small."""
        cropped: torch.Tensor = kernels.center_crop_image(image, self._size)
        return cropped

    apply_to_batch = apply

    def to_parameters(self, draws: Draws, size: Size) -> tuple[Parameters, Size]:  # noqa: ARG002 - of the protocol
        """Return no parameters."""
        return _NO_PARAMETERS, (self._size[0], self._size[1])

    def apply_parameters(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - of the protocol
        """Return the centre of the images."""
        cropped: torch.Tensor = kernels.center_crop_image(images, self._size)
        return cropped


class RandomFlip:
    """`RandomHorizontalFlip` of torchvision (axis -1), or `RandomVerticalFlip` (axis -2)."""

    def __init__(self, probability: float, *, axis: int) -> None:
        self._probability = probability
        self._axis = axis

    def draw(self, micro_batch: MicroBatch, *, seed: int, index: int) -> Draws:
        """Return 1 for a sample that is flipped and 0 for one that is not: float64 [n, 1]."""
        drawn = uniform(sample_keys(micro_batch, seed=seed, index=index), 1)
        return (drawn < self._probability).astype(np.float64)

    def apply(self, image: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return the image, flipped or not."""
        return image.flip(self._axis) if draws[0] else image

    def apply_to_batch(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return images [n, channels, height, width], some of them flipped."""
        return flip_some(images, draws[:, 0] == 1, axis=self._axis)

    def to_parameters(self, draws: Draws, size: Size) -> tuple[Parameters, Size]:
        """Return 1 for a sample that is flipped and 0 for one that is not."""
        return draws.T.astype(np.int64), size

    def apply_parameters(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return the images, some of them flipped."""
        return torch.where(parameters[0].bool()[:, None, None, None], images.flip(self._axis), images)


class AlternatingFlip:
    """A horizontal flip of half of the samples in every epoch, and of the other half in the next one.

    Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024: in two epochs each sample is seen both ways, but
    with independent draws only half of the samples are. Copies of a sample within an epoch alternate, too.
    """

    def draw(self, micro_batch: MicroBatch, *, seed: int, index: int) -> Draws:
        """Return 1 for a sample that is flipped and 0 for one that is not: float64 [n, 1]."""
        first = derive_keys(seed, Purpose.ALTERNATION, micro_batch.indices, index) >> np.uint64(63)
        copies = 0 if micro_batch.copies is None else micro_batch.copies
        return ((first.astype(np.int64) + micro_batch.epoch + copies) % 2).astype(np.float64)[:, None]

    def apply(self, image: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return the image, flipped or not."""
        return image.flip(-1) if draws[0] else image

    def apply_to_batch(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return images [n, channels, height, width], some of them flipped."""
        return flip_some(images, draws[:, 0] == 1, axis=-1)

    def to_parameters(self, draws: Draws, size: Size) -> tuple[Parameters, Size]:
        """Return 1 for a sample that is flipped and 0 for one that is not."""
        return draws.T.astype(np.int64), size

    def apply_parameters(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return the images, some of them flipped."""
        return torch.where(parameters[0].bool()[:, None, None, None], images.flip(-1), images)


class Cutout:
    """A square of `size` pixels per side set to `fill`, its centre anywhere in the image, clipped at the border.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017. `fill` is one
    number or one per channel, in the range of the images: 0 to 255 for bytes. The paper uses the mean colour.
    """

    def __init__(self, size: int, fill: float | Sequence[float] = 0) -> None:
        if not (isinstance(size, int) and size > 0):
            raise ValueError(f"size is {size!r}; use a whole number of pixels, 1 or more")
        self._size = size
        self._fill = _Constant(fill)

    def draw(self, micro_batch: MicroBatch, *, seed: int, index: int) -> Draws:
        """Return the centre as fractions of height and width: float64 [n, 2]."""
        return uniform(sample_keys(micro_batch, seed=seed, index=index), 2)

    def apply(self, image: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return the image with its square set to `fill`."""
        return self.apply_to_batch(image[None], draws[None])[0]

    def apply_to_batch(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return images [n, channels, height, width], each with its square set to `fill`."""
        parameters, _ = self.to_parameters(draws, (images.shape[2], images.shape[3]))
        return self.apply_parameters(images, torch.from_numpy(parameters))

    def to_parameters(self, draws: Draws, size: Size) -> tuple[Parameters, Size]:
        """Return the first row and the first column of each square, which may be outside the image."""
        return (draws.T * np.array(size)[:, None]).astype(np.int64) - self._size // 2, size

    def apply_parameters(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return the images, each with its square set to `fill`."""
        fill = self._fill.on(images)
        if len(fill) not in (1, images.shape[1]):
            numbers, channels = counted(len(fill), "number"), counted(images.shape[1], "channel")
            raise ValueError(f"Cutout: fill has {numbers}, but the image has {channels}")
        rows, columns = (
            self._is_cut(first, images.shape[axis]) for first, axis in zip(parameters, (2, 3), strict=True)
        )
        return torch.where(rows[:, None, :, None] & columns[:, None, None, :], fill, images)

    def _is_cut(self, first: torch.Tensor, length: int) -> torch.Tensor:
        positions = torch.arange(length, device=first.device)
        return (positions >= first[:, None]) & (positions < first[:, None] + self._size)


class _Constant:
    """A number, or one per channel, as a tensor [1 or channels, 1, 1] that is copied to each device once."""

    def __init__(self, value: float | Sequence[float]) -> None:
        self._value = torch.as_tensor(value).reshape(-1, 1, 1)
        self._copies: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def on(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tensor on the device of the images, in their dtype."""
        kind = images.device, images.dtype
        if kind not in self._copies:
            self._copies[kind] = self._value.to(*kind)
        return self._copies[kind]


Batched = RandomCrop | CenterCrop | RandomFlip | AlternatingFlip | Cutout

ADDED = {"AlternatingFlip": AlternatingFlip, "Cutout": Cutout}  # by name: those that torchvision does not have


def from_torchvision(transform: Any) -> Batched | None:
    """Return the same transform with seeded draws; None where this module does not have it with these arguments."""
    if type(transform) is v2.RandomCrop:
        is_plain = isinstance(transform.fill, int | float) or (
            transform.padding_mode == "constant" and isinstance(transform.fill, list | tuple)
        )
        if transform.pad_if_needed or transform.padding_mode == "symmetric" or not is_plain:
            return None
        return RandomCrop(transform.size, transform.padding, transform.fill, transform.padding_mode)
    if type(transform) is v2.CenterCrop:
        return CenterCrop(transform.size)
    if type(transform) is v2.RandomHorizontalFlip:
        return RandomFlip(transform.p, axis=-1)
    if type(transform) is v2.RandomVerticalFlip:
        return RandomFlip(transform.p, axis=-2)
    return None


def flip_some(images: torch.Tensor, is_flipped: NDArray[np.bool_], *, axis: int) -> torch.Tensor:
    """Return images [n, channels, height, width] on the CPU, flipped along an axis where `is_flipped` [n] says so."""
    which = np.flatnonzero(is_flipped)
    flipped, pixels = images.clone(), images.numpy()
    view = pixels[..., ::-1] if axis == -1 else pixels[..., ::-1, :]
    flipped.numpy()[which] = view[which]  # ten times as fast as torch's flip of bytes
    return flipped


def sample_keys(micro_batch: MicroBatch, *, seed: int, index: int) -> NDArray[np.uint64]:
    """Return a key for each sample of a micro-batch and the `index`th transform of its list, uint64[n]."""
    copies = 0 if micro_batch.copies is None else micro_batch.copies
    return derive_keys(seed, Purpose.AUGMENT, micro_batch.epoch, micro_batch.indices, copies, index)
