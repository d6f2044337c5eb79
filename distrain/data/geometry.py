"""Owns the transforms that only move or cover pixels, with draws of their own: crops, flips, cutout.

Each comes in two halves. `draw` gives its numbers for many samples at once, as a pure function of (seed, epoch, sample,
copy, place in the list), without any generator. `apply` changes one image by them as torchvision.transforms.v2 would,
`apply_to_batch` many of one size at once, to the same bits, on the device where they are.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as kernels

from distrain.data.order import MicroBatch
from distrain.seeds import Purpose, derive_keys, uniform

Numbers = NDArray[np.float64]


class Drawn(Protocol):
    """A transform with draws of its own; what draws nothing draws arrays of no columns."""

    def draw(self, micro_batch: MicroBatch, *, seed: int, place: int) -> Numbers:
        """Return what each sample of a micro-batch draws for this transform, the `place`th of its list: [n, ...]."""
        ...

    def apply(self, image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """Return one image [channels, height, width] changed by a row of `draw`; `ValueError` where it cannot be."""
        ...


class RandomCrop:
    """`RandomCrop` of torchvision, its arguments as that has parsed them: `padding` is left, right, top, bottom."""

    def __init__(
        self, size: Sequence[int], padding: Sequence[int] | None, fill: float | list[float], mode: str
    ) -> None:
        self._height, self._width = size
        left, right, top, bottom = padding or (0, 0, 0, 0)
        self._padding = [left, top, right, bottom]
        self._fill = fill
        self._mode = mode

    def draw(self, micro_batch: MicroBatch, *, seed: int, place: int) -> Numbers:
        """Return, uniform in [0, 1), where between the uppermost and the lowest, and the leftmost, a crop lies."""
        return uniform(sample_keys(micro_batch, seed=seed, place=place), 2)

    def apply(self, image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """Return the crop of the padded image."""
        padded = self._pad(image)
        (top,), (left,) = self._corners(padded, numbers[None])
        return padded[..., top : top + self._height, left : left + self._width]

    def apply_to_batch(self, images: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """Return the crops of the padded images [n, channels, height, width]."""
        padded = self._pad(images)
        rows, columns = self._corners(padded, numbers)
        count, size = np.arange(len(rows)), (self._height, self._width)
        if padded.device.type == "cpu":  # numpy copies whole windows, in a tenth of the time that torch takes for it
            windows = np.lib.stride_tricks.sliding_window_view(padded.numpy(), size, axis=(2, 3))
            return torch.from_numpy(np.ascontiguousarray(windows[count, :, rows, columns]))
        n, tops, lefts = (torch.from_numpy(part).to(padded.device) for part in (count, rows, columns))
        return padded.unfold(2, self._height, 1).unfold(3, self._width, 1)[n, :, tops, lefts].contiguous()

    def _pad(self, images: torch.Tensor) -> torch.Tensor:
        if not any(self._padding):
            return images
        padded: torch.Tensor = kernels.pad_image(images, self._padding, fill=self._fill, padding_mode=self._mode)
        return padded

    def _corners(self, padded: torch.Tensor, numbers: Numbers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        height, width = padded.shape[-2:]
        if height < self._height or width < self._width:
            raise ValueError(
                f"RandomCrop: a crop of {self._height}x{self._width} is larger than the image, which is "
                f"{height}x{width} with its padding"
            )
        top, left = numbers[:, 0] * (height - self._height + 1), numbers[:, 1] * (width - self._width + 1)
        return top.astype(np.int64), left.astype(np.int64)


class CenterCrop:
    """`CenterCrop` of torchvision, which draws nothing."""

    def __init__(self, size: Sequence[int]) -> None:
        self._size = list(size)

    def draw(self, micro_batch: MicroBatch, *, seed: int, place: int) -> Numbers:  # noqa: ARG002 - of the protocol
        """Return nothing for each sample: float64 [n, 0]."""
        return np.empty((len(micro_batch.indices), 0))

    def apply(self, image: torch.Tensor, numbers: Numbers) -> torch.Tensor:  # noqa: ARG002 - of the protocol
        """Return the middle of the image, with black around it where it is too small."""
        cropped: torch.Tensor = kernels.center_crop_image(image, self._size)
        return cropped

    apply_to_batch = apply


class RandomFlip:
    """`RandomHorizontalFlip` of torchvision (axis -1), or `RandomVerticalFlip` (axis -2)."""

    def __init__(self, probability: float, *, axis: int) -> None:
        self._probability = probability
        self._axis = axis

    def draw(self, micro_batch: MicroBatch, *, seed: int, place: int) -> Numbers:
        """Return 1 for a sample that is flipped and 0 for one that is not: float64 [n, 1]."""
        drawn = uniform(sample_keys(micro_batch, seed=seed, place=place), 1)
        return (drawn < self._probability).astype(np.float64)

    def apply(self, image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """Return the image, flipped or not."""
        return image.flip(self._axis) if numbers[0] else image

    def apply_to_batch(self, images: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """Return images [n, channels, height, width], some of them flipped."""
        return flip_some(images, numbers[:, 0] == 1, axis=self._axis)


class AlternatingFlip:
    """A horizontal flip that every sample has in every other epoch, and half of them in each.

    Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024: in two epochs each sample is seen both ways, which
    independent draws do for half of the samples only. Its copies in an epoch alternate likewise.
    """

    def draw(self, micro_batch: MicroBatch, *, seed: int, place: int) -> Numbers:
        """Return 1 for a sample that is flipped and 0 for one that is not: float64 [n, 1]."""
        first = derive_keys(seed, Purpose.ALTERNATION, micro_batch.indices, place) >> np.uint64(63)
        copies = 0 if micro_batch.copies is None else micro_batch.copies
        return ((first.astype(np.int64) + micro_batch.epoch + copies) % 2).astype(np.float64)[:, None]

    def apply(self, image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """Return the image, flipped or not."""
        return image.flip(-1) if numbers[0] else image

    def apply_to_batch(self, images: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """Return images [n, channels, height, width], some of them flipped."""
        return flip_some(images, numbers[:, 0] == 1, axis=-1)


class Cutout:
    """A square of `size` pixels a side set to `fill`, its middle anywhere in the image, cut off at the border.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017. `fill` is one
    number or one a channel, in the range of the images: 0 to 255 for bytes, where the paper's is the mean colour.
    """

    def __init__(self, size: int, fill: float | Sequence[float] = 0) -> None:
        if not (isinstance(size, int) and size > 0):
            raise ValueError(f"size is {size!r}; it is a whole number of pixels, 1 or more")
        self._size = size
        self._fill = torch.as_tensor(fill).reshape(-1, 1, 1)

    def draw(self, micro_batch: MicroBatch, *, seed: int, place: int) -> Numbers:
        """Return where the middle lies, as fractions of height and width: float64 [n, 2]."""
        return uniform(sample_keys(micro_batch, seed=seed, place=place), 2)

    def apply(self, image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """Return the image with the square in it."""
        return self.apply_to_batch(image[None], numbers[None])[0]

    def apply_to_batch(self, images: torch.Tensor, numbers: Numbers) -> torch.Tensor:
        """Return images [n, channels, height, width], each with its square."""
        if len(self._fill) not in (1, images.shape[1]):
            raise ValueError(f"Cutout: fill has {len(self._fill)} numbers and the image {images.shape[1]} channels")
        rows = self._is_cut(numbers[:, 0], images.shape[2])
        columns = self._is_cut(numbers[:, 1], images.shape[3])
        is_cut = torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
        return torch.where(is_cut, self._fill.to(images.device, images.dtype), images)

    def _is_cut(self, fractions: NDArray[np.float64], length: int) -> NDArray[np.bool_]:
        first = (fractions * length).astype(np.int64)[:, None] - self._size // 2
        places = np.arange(length)
        return np.asarray((places >= first) & (places < first + self._size))


Batched = RandomCrop | CenterCrop | RandomFlip | AlternatingFlip | Cutout

ADDED = {"AlternatingFlip": AlternatingFlip, "Cutout": Cutout}  # by name: what torchvision does not have


def from_torchvision(transform: Any) -> Batched | None:
    """Return the same transform with draws of its own; None for one that has no such form with its arguments."""
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
    """Return images [n, channels, height, width], those flipped along an axis that `is_flipped` [n] tells."""
    if images.device.type != "cpu":
        return torch.where(
            torch.from_numpy(is_flipped).to(images.device)[:, None, None, None], images.flip(axis), images
        )
    which = np.flatnonzero(is_flipped)
    flipped, pixels = images.clone(), images.numpy()
    view = pixels[..., ::-1] if axis == -1 else pixels[..., ::-1, :]
    flipped.numpy()[which] = view[which]  # ten times as fast as torch's own flip of bytes
    return flipped


def sample_keys(micro_batch: MicroBatch, *, seed: int, place: int) -> NDArray[np.uint64]:
    """Return a key for each sample of a micro-batch and the `place`th transform of its list, uint64[n]."""
    copies = 0 if micro_batch.copies is None else micro_batch.copies
    return derive_keys(seed, Purpose.AUGMENT, micro_batch.epoch, micro_batch.indices, copies, place)
