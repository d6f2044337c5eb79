"""Reads image files of any mode as RGB samples."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from distrain.config.data import Data, Split
from distrain.data.layout.file_list import Listing
from distrain.data.sources import decoders
from distrain.data.sources.decoders import Bytes, DecodeError, to_rgb
from distrain.errors import DataError

if TYPE_CHECKING:
    from distrain.data.sources.base import Source


class FileSource:
    """Images read from the files of a listing, as RGB; `notes` are those of the listing."""

    has_known_targets = True
    is_thread_safe = True

    def __init__(self, listing: Listing, *, decode_size: int | None = None) -> None:
        self.classes = listing.classes
        self.target = listing.target
        self.notes = listing.notes
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

    def fingerprint(self, *, allow_missing: bool = False) -> str:
        """Return a digest over the files' names without their folders, their sizes, the targets and `decode_size`.

        Raises `DataError` for a file that does not exist, unless `allow_missing`: it counts as 0 bytes.
        """
        digest = hashlib.sha256()
        for path, target in zip(self._paths, self.targets.tolist(), strict=True):
            size = file_size(path, allow_missing=allow_missing)
            digest.update(os.fsencode(f"{target}/{Path(path).name}:{size}\n"))
        return fingerprint_decoded(digest.hexdigest(), self._decode_size)


def file_size(path: str, *, allow_missing: bool = False) -> int:
    """Return the size of an image file in bytes; raises `DataError` where it is missing, or returns 0 if allowed."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - there may be a million
    except OSError as error:
        if allow_missing:
            return 0
        raise DataError(f"image {path} cannot be read ({error.strerror}); fix or remove it") from None


def open_files(listings: Mapping[Split, Listing], config: Data) -> dict[str, "Source"]:
    """Return a source for each split whose files are listed."""
    return {split: FileSource(listing, decode_size=config.decode_size) for split, listing in listings.items()}


def fingerprint_decoded(fingerprint: str, decode_size: int | None) -> str:
    """Return the fingerprint of images whose files have `fingerprint`: a `decode_size` changes their pixels."""
    if decode_size is None:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} decode_size {decode_size}".encode()).hexdigest()


def read_image(path: str, *, decode_size: int | None = None) -> torch.Tensor:
    """Return the image in a file as RGB, uint8 [3, height, width]; raises `DataError` with its path."""
    try:
        return decode(_read_file(path), decode_size=decode_size)
    except (OSError, DecodeError) as error:
        raise unreadable(path, error) from None


def decode(content: Bytes, *, decode_size: int | None = None) -> torch.Tensor:
    """Return the image in a file's bytes as RGB, uint8 [3, height, width], channels last in memory.

    Raises `DecodeError`, whatever the bytes hold.
    """
    return torch.from_numpy(decoders.decode(content, decode_size=decode_size)).permute(2, 0, 1)


def unreadable(name: str, error: OSError | DecodeError, *, advice: str = "fix or remove it") -> DataError:
    """Return the error for an image that could not be read or decoded."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DataError(f"image {name} cannot be read ({reason}); {advice}")


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return a dataset's Pillow image upright, uint8: [1, height, width] where it is grey, else [3, height, width]."""
    upright = ImageOps.exif_transpose(image) if image.mode == "L" else to_rgb(image)
    pixels = np.atleast_3d(np.array(upright))  # [height, width, channels]
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _read_file(path: str) -> Bytes:
    """Return a file's bytes, in half the time of Python's file objects; the decoder notices missing bytes."""
    file = os.open(path, os.O_RDONLY)
    try:
        content = np.empty(os.fstat(file).st_size, dtype=np.uint8)
        return content[: os.readv(file, [content.data])]
    finally:
        os.close(file)
