"""Computes the statistics of an image folder: sizes, and mean and standard deviation of each channel."""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from distrain.data.inspection.open_image import is_packed_address, num_bytes, open_image
from distrain.data.inspection.scan import Listing
from distrain.data.inspection.worker_pool import DecodePool
from distrain.data.sources.decoders import DecodeError, decode

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
MAX_SAMPLED = 5_000  # images; the mean of a channel then has an error of about 0.002 (photographs differ by 0.12)
FLOAT_LEVELS = np.arange(256) / 255

Moments: TypeAlias = NDArray[np.float64]


class ImageHeader(NamedTuple):
    """One file: upright width and height in pixels by its header (0 if unreadable), its format and size in bytes."""

    width: int
    height: int
    format: str
    num_bytes: int


@dataclass
class ImageStatistics:
    """All files of a folder: `sizes` has the width and height of each readable one."""

    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    formats: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    num_unreadable: int = 0

    def quantiles(self) -> NDArray[np.int64]:
        """Return the `QUANTILES` of width and of height, int64 [2, 5]; needs at least one image."""
        pairs = np.array(self.sizes, np.int64).reshape(-1, 2)
        return np.quantile(pairs, QUANTILES, axis=0, method="nearest").T.astype(np.int64)

    def most_common(self, count: int) -> list[tuple[str, int]]:
        """Return the most common sizes, as `WIDTHxHEIGHT` and the number of images."""
        pairs, numbers = np.unique(np.array(self.sizes, np.int64).reshape(-1, 2), axis=0, return_counts=True)
        order = np.argsort(-numbers, kind="stable")[:count]
        return [(f"{pairs[i, 0]}x{pairs[i, 1]}", int(numbers[i])) for i in order]


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of red, green and blue in [0, 1], over `num_images` images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_images: int


def read_statistics(pool: DecodePool, listing: Listing, *, advance: Callable[[], None]) -> ImageStatistics:
    """Read the header of every image; `advance` is called after each."""
    statistics = ImageStatistics()
    addresses = map(listing.address, range(len(listing.paths)))
    for found in pool.read(read_header, addresses, on_crash=lambda _: ImageHeader(0, 0, "", 0)):
        statistics.num_bytes += found.num_bytes
        if found.width:
            statistics.sizes.extend((found.width, found.height))
            statistics.formats[found.format] += 1
        else:
            statistics.num_unreadable += 1
        advance()
    return statistics


def channel_statistics(pool: DecodePool, listing: Listing, *, advance: Callable[[], None]) -> ChannelStatistics | None:
    """Return mean and standard deviation over training images, evenly spread over the classes; None without any.

    Every image has the same weight, whatever its size: training resizes all of them.
    """
    chosen = sample_indices(listing)
    moments = []
    for found in pool.read(channel_moments, map(listing.address, chosen), on_crash=lambda _: None):
        if found is not None:
            moments.append(found)
        advance()
    if not moments:
        return None
    mean, square = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return ChannelStatistics(tuple(mean.tolist()), tuple(std.tolist()), len(moments))


def sample_indices(listing: Listing) -> list[int]:
    """Return up to `MAX_SAMPLED` indices of training images, evenly spaced in the list, which is sorted by class."""
    training = np.flatnonzero(np.array(listing.split_of, np.uint8) == listing.splits.index(listing.training))
    positions = np.linspace(0, len(training) - 1, min(MAX_SAMPLED, len(training))).round().astype(np.int64)
    chosen: list[int] = training[positions].tolist()
    return chosen


def channel_moments(path: str) -> Moments | None:
    """Return the mean of a file's pixels and of their squares, float64 [2, 3] in [0, 1]; None if unreadable."""
    image = open_as_rgb(path)
    if image is None:
        return None
    counts = np.array(image.histogram(), np.float64).reshape(3, 256) / (image.width * image.height)
    return np.stack([counts @ FLOAT_LEVELS, counts @ FLOAT_LEVELS**2])


def open_as_rgb(path: str, *, near: int | None = None) -> Image.Image | None:
    """Decode an image as training does, or return None where that fails.

    With `near`, the image may be smaller, with sides of at least that many pixels: a JPEG decodes faster.
    """
    try:
        with open_image(path) as file:
            return Image.fromarray(decode(np.frombuffer(file.read(), np.uint8), decode_size=near))
    except (OSError, DecodeError):  # `data check` reports the reason
        return None


def read_header(path: str) -> ImageHeader:
    """Read the header of a file."""
    try:
        length = num_bytes(path)
    except OSError:
        return ImageHeader(0, 0, "", 0)
    try:
        with open_image(path) as file, Image.open(file) as image:
            has_raw_pixels = is_packed_address(path) and image.format == "PPM"
            width, height = image.size[::-1] if _is_transposed(image) else image.size
            return ImageHeader(width, height, "pixels" if has_raw_pixels else str(image.format), length)
    except Exception:  # noqa: BLE001 - PIL raises errors of every kind for broken files; `data check` reports them
        return ImageHeader(0, 0, "", length)


def _is_transposed(image: Image.Image) -> bool:
    """Whether EXIF in the header of a file says that rows and columns are swapped."""
    if image.format == "TIFF":
        return False  # Pillow has swapped its size already
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return False  # reading EXIF that may follow the pixels would decode the whole image
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
