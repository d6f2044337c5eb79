"""Computes the statistics of an image folder: sizes, and mean and standard deviation of each channel."""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from distrain.data.inspection.open_image import is_packed_address, num_bytes, open_picture
from distrain.data.inspection.scan import Listing
from distrain.data.inspection.worker_pool import DecodePool
from distrain.data.sources.decoders import DecodeError, decode

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
MAX_SAMPLED = 5_000  # images; the mean of a channel is then off by 0.002 or so (means of photographs differ by 0.12)
FLOAT_LEVELS = np.arange(256) / 255

Moments: TypeAlias = NDArray[np.float64]


class Measures(NamedTuple):
    """One file: width and height in pixels, upright, as its header says (0 if unreadable), its format and its bytes."""

    width: int
    height: int
    format: str
    num_bytes: int


@dataclass
class ImageStatistics:
    """All files of a folder: `sizes` has width and height of the readable ones in turn."""

    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    formats: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    num_unreadable: int = 0

    def quantiles(self) -> NDArray[np.int64]:
        """Return the `QUANTILES` of width and of height, int64 [2, 5]; there must be an image."""
        pairs = np.array(self.sizes, np.int64).reshape(-1, 2)
        return np.quantile(pairs, QUANTILES, axis=0, method="nearest").T.astype(np.int64)

    def most_common(self, count: int) -> list[tuple[str, int]]:
        """Return the sizes that most images have, as `WIDTHxHEIGHT` and the number of images."""
        pairs, numbers = np.unique(np.array(self.sizes, np.int64).reshape(-1, 2), axis=0, return_counts=True)
        order = np.argsort(-numbers, kind="stable")[:count]
        return [(f"{pairs[i, 0]}x{pairs[i, 1]}", int(numbers[i])) for i in order]


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of red, green and blue in [0, 1], over so many images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_images: int


def measure(readers: DecodePool, listing: Listing, *, advance: Callable[[], None]) -> ImageStatistics:
    """Read the header of every image; `advance` is called after each."""
    figures = ImageStatistics()
    addresses = map(listing.address, range(len(listing.paths)))
    for found in readers.read(measure_image, addresses, when_killed=lambda _: Measures(0, 0, "", 0)):
        figures.num_bytes += found.num_bytes
        if found.width:
            figures.sizes.extend((found.width, found.height))
            figures.formats[found.format] += 1
        else:
            figures.num_unreadable += 1
        advance()
    return figures


def measure_channels(readers: DecodePool, listing: Listing, *, advance: Callable[[], None]) -> ChannelStatistics | None:
    """Return mean and deviation over training images, evenly spread over the classes; None where none can be read.

    Every image weighs the same, whatever its size: a training makes all of them one size.
    """
    chosen = sample_indices(listing)
    moments = []
    for found in readers.read(channel_moments, map(listing.address, chosen), when_killed=lambda _: None):
        if found is not None:
            moments.append(found)
        advance()
    if not moments:
        return None
    mean, square = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return ChannelStatistics(tuple(mean.tolist()), tuple(std.tolist()), len(moments))


def sample_indices(listing: Listing) -> list[int]:
    """Return up to `MAX_SAMPLED` indices of training images, at even distances in the list, which is by class."""
    training = np.flatnonzero(np.array(listing.split_of, np.uint8) == listing.splits.index(listing.training))
    places = np.linspace(0, len(training) - 1, min(MAX_SAMPLED, len(training))).round().astype(np.int64)
    chosen: list[int] = training[places].tolist()
    return chosen


def channel_moments(path: str) -> Moments | None:
    """Return the mean of a file's pixels and of their squares, float64 [2, 3] in [0, 1]; None if unreadable."""
    image = open_as_rgb(path)
    if image is None:
        return None
    counts = np.array(image.histogram(), np.float64).reshape(3, 256) / (image.width * image.height)
    return np.stack([counts @ FLOAT_LEVELS, counts @ FLOAT_LEVELS**2])


def open_as_rgb(path: str, *, near: int | None = None) -> Image.Image | None:
    """Decode an image as a training does, or return None where that fails.

    With `near` it may come smaller, its sides at least that many pixels: a JPEG decodes the quicker.
    """
    try:
        with open_picture(path) as file:
            return Image.fromarray(decode(np.frombuffer(file.read(), np.uint8), decode_size=near))
    except (OSError, DecodeError):  # `data check` tells the reason
        return None


def measure_image(path: str) -> Measures:
    """Read the header of a file."""
    try:
        length = num_bytes(path)
    except OSError:
        return Measures(0, 0, "", 0)
    try:
        with open_picture(path) as file, Image.open(file) as image:
            is_bare = is_packed_address(path) and image.format == "PPM"
            width, height = image.size[::-1] if _lies_on_its_side(image) else image.size
            return Measures(width, height, "pixels" if is_bare else str(image.format), length)
    except Exception:  # noqa: BLE001 - a broken file leads PIL to errors of every kind; `data check` tells which
        return Measures(0, 0, "", length)


def _lies_on_its_side(image: Image.Image) -> bool:
    """Whether EXIF in the head of a file says that its rows are columns."""
    if image.format == "TIFF":
        return False  # Pillow has turned its size already
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return False  # it would be decoded whole, for what may stand behind its pixels
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
