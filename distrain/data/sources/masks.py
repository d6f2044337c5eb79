"""Reads pairs of an image and a mask from files."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from distrain.config.data import Data
from distrain.config.metrics import Target
from distrain.data.layout.mask_folder import MaskListing, scan_mask_folder
from distrain.data.sources.base import Source
from distrain.data.sources.files import file_size, read_image
from distrain.data.sources.targets import to_mask
from distrain.errors import DataError


class MaskSource:
    """Images with masks uint8 [height, width] of the same size: the number of a class for each pixel, 255 for none."""

    target: Target = "mask"
    has_known_targets = False
    is_thread_safe = True

    def __init__(self, listing: MaskListing) -> None:
        self.classes = listing.classes
        self._images = listing.images
        self._masks = listing.masks

    @property
    def targets(self) -> torch.Tensor:
        """All masks, uint8 [n, height, width]; every one is read."""
        return torch.stack([self._read_mask(index) for index in range(len(self))])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def read(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Decode an image uint8 [3, height, width] and its mask; raises `DataError` where they do not fit."""
        image = read_image(self._images[index])
        return image, to_mask(self._read_mask(index), image, self.classes, describe=lambda: self._masks[index])

    def describe(self, index: int) -> str:
        """Return the image's path."""
        return self._images[index]

    def fingerprint(self) -> str:
        """Return a digest over the names of the classes, and the names and sizes of the files."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for image, mask in zip(self._images, self._masks, strict=True):
            sizes = f"{file_size(image)}:{file_size(mask)}"
            digest.update(os.fsencode(f"{Path(image).name}:{Path(mask).name}:{sizes}\n"))
        return digest.hexdigest()

    def _read_mask(self, index: int) -> torch.Tensor:
        path = self._masks[index]
        try:
            with Image.open(path) as opened:
                mode, pixels = opened.mode, np.array(opened)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise DataError(f"mask {path} cannot be read ({error}); fix or remove it") from None
        if mode not in {"1", "L", "P"}:
            raise DataError(f"mask {path} has mode {mode}; use one channel of bytes, the number of a class each")
        return torch.from_numpy(pixels.astype(np.uint8))


def open_mask_folder(config: Data) -> dict[str, Source]:
    """Open the pairs of images and masks in a folder."""
    listings = scan_mask_folder(config.path, splits=config.splits)
    return {split: MaskSource(listing) for split, listing in listings.items()}
