"""Owns images in files and how any of them becomes RGB, whatever it was written as.

One rule for each property of a file: its EXIF orientation is carried out; of 16 bits the upper 8 are taken; what is
transparent is laid over white, as most viewers show it; of several frames or pages the first one is read.

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size at once, from the lower frequencies of its 8x8 blocks. With a
`decode_size` the smallest of these is taken whose shorter side is as long, or longer.
"""

import hashlib
import io
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from distrain.data.listing import Listing
from distrain.errors import DataError
from distrain.recipe.data import Data, Split

if TYPE_CHECKING:
    from distrain.data.source import Source

FAULTS = (  # what decoders raise of a broken file
    *(OSError, RuntimeError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error),
    Image.DecompressionBombError,
)
_PNG = b"\x89PNG\r\n\x1a\n"


class FileSource:
    """Images read from the files of a listing, as RGB."""

    is_thread_safe = True

    def __init__(self, listing: Listing, *, decode_size: int | None = None) -> None:
        self.classes = listing.classes
        self.target = listing.target
        self.targets = torch.tensor(listing.targets, dtype=torch.int64 if listing.target == "class" else torch.float32)
        self._paths = listing.paths
        self._decode_size = decode_size

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def read(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Decode one image to uint8 [3, height, width]; raises `DataError` with its path where that fails."""
        target = self.targets[index]
        image = read_image(self._paths[index], decode_size=self._decode_size)
        return image, int(target) if self.target == "class" else target

    def describe(self, index: int) -> str:
        """Return the image's path."""
        return self._paths[index]

    def fingerprint(self) -> str:
        """Return a digest over the files' names without their folders, their sizes, the targets and `decode_size`."""
        digest = hashlib.sha256()
        for path, target in zip(self._paths, self.targets.tolist(), strict=True):
            try:
                size = Path(path).stat().st_size
            except OSError as error:
                raise DataError(f"image {path} cannot be read ({error.strerror}); mend or remove it") from None
            digest.update(os.fsencode(f"{target}/{Path(path).name}:{size}\n"))
        return fingerprint_decoded(digest.hexdigest(), self._decode_size)


def open_files(listings: Mapping[Split, Listing], config: Data) -> dict[str, "Source"]:
    """Return the splits of a recipe's data whose files are listed."""
    return {split: FileSource(listing, decode_size=config.decode_size) for split, listing in listings.items()}


def fingerprint_decoded(fingerprint: str, decode_size: int | None) -> str:
    """Return the digest of images whose files have a digest: with a `decode_size` they have other pixels."""
    if decode_size is None:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} decode_size {decode_size}".encode()).hexdigest()


def read_image(path: str, *, decode_size: int | None = None) -> torch.Tensor:
    """Return the image in a file as RGB, uint8 [3, height, width]; raises `DataError` with its path."""
    try:
        return decode(_read_file(path), decode_size=decode_size)
    except FAULTS as error:
        raise unreadable(path, error) from None


def unreadable(name: str, error: Exception, *, advice: str = "mend or remove it") -> DataError:
    """Return the error of an image that could not be decoded."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    reason = re.sub(r"^decode_\w+, \S+, ", "", reason)  # torchvision's own name and line
    if isinstance(error, UnidentifiedImageError):
        reason = "it is no image of a known format"
    return DataError(f"image {name} cannot be read ({reason}); {advice}")


def decode(content: NDArray[np.uint8], *, decode_size: int | None = None) -> torch.Tensor:
    """Return the image in a file's bytes as RGB, uint8 [3, height, width].

    torchvision is two to four times as fast as Pillow and gives the same pixels where a file is plain, which almost all
    are; it drops transparency, does not reduce 16 bits, and reads fewer formats.
    """
    if decode_size is not None and _is_jpeg(content):
        with Image.open(io.BytesIO(content.data)) as image:  # reads no more than the head
            if min(image.size) >= 2 * decode_size:
                image.draft(None, (decode_size, decode_size))
                return _pixels(to_rgb(image))
    if _is_plain(content):
        # Takes a second to import, in the training process, which reads some images before loader processes start.
        from torchvision.io import ImageReadMode, decode_image

        pixels: torch.Tensor = decode_image(
            torch.from_numpy(content), mode=ImageReadMode.RGB, apply_exif_orientation=True
        )
        return pixels
    with Image.open(io.BytesIO(content.tobytes())) as image:
        return _pixels(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a Pillow image of any mode as RGB; raises `ValueError` where its pixels have no agreed range."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, whose range it does not tell; write it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.size and not (values.min() >= 0 and values.max() <= 0xFFFF):
            raise ValueError("it has pixels of more than 16 bits; write it with 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return a Pillow image that a dataset gives, uint8: [1, height, width] where it is plain grey, RGB otherwise."""
    return _pixels(image if image.mode == "L" else to_rgb(image))


def _read_file(path: str) -> NDArray[np.uint8]:
    """Return a file's bytes, in half the time of a file object of Python's; what it lacks a decoder will miss."""
    file = os.open(path, os.O_RDONLY)
    try:
        content = np.empty(os.fstat(file).st_size, dtype=np.uint8)
        return content[: os.readv(file, [content.data])]
    finally:
        os.close(file)


def _pixels(image: Image.Image) -> torch.Tensor:
    pixels = np.atleast_3d(np.array(image))  # [height, width, channels]
    return torch.from_numpy(pixels).permute(2, 0, 1)  # in memory channels last, as torchvision's decoders give it


def _is_jpeg(content: NDArray[np.uint8]) -> bool:
    return content[:3].tobytes() == b"\xff\xd8\xff"


def _is_plain(content: NDArray[np.uint8]) -> bool:
    """Whether a file is a JPEG, or a PNG of 8 bits without transparency or palette."""
    if _is_jpeg(content):
        return True
    head = content[:26].tobytes()
    if len(head) < 26 or not head.startswith(_PNG) or head[24] != 8 or head[25] not in (0, 2):
        return False
    place = len(_PNG)
    while place + 8 <= len(content):  # the chunks: size, kind, content, checksum
        kind = content[place + 4 : place + 8].tobytes()
        if kind in (b"IDAT", b"tRNS"):
            return kind == b"IDAT"
        place += 12 + int.from_bytes(content[place : place + 4].tobytes(), "big")
    return False
