"""Opens an image by its address: the path of a file, or an index in a packed dataset."""

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

from distrain.config.data import Split
from distrain.data.packing.format import PackedImages, read_pack

_END = "\0"  # occurs in no path


def packed_address(folder: Path, split: Split, index: int) -> str:
    """Return the address of an image in a packed dataset."""
    return f"{folder}{_END}{split}{_END}{index}"


def is_packed_address(address: str) -> bool:
    """Whether an image is in a packed dataset."""
    return _END in address


def open_image(address: str) -> BinaryIO:
    """Open an image as a file that Pillow reads; pixels of a pack as a PPM, or a PGM of their first channel."""
    if not is_packed_address(address):
        return open(address, "rb")  # noqa: PTH123 - called once per image; the caller closes it
    folder, split, number = address.split(_END)
    images, index = _packed_images(folder, cast("Split", split)), int(number)
    if images.form.format == "jpeg":
        return io.BytesIO(images.content(index).data)
    pixels = images.pixels(index)
    channels, height, width = pixels.shape
    kind, shown = ("P6", pixels) if channels == 3 else ("P5", pixels[:1])
    return io.BytesIO(f"{kind} {width} {height} 255\n".encode() + shown.transpose(1, 2, 0).tobytes())


def num_bytes(address: str) -> int:
    """Return the stored size of an image in bytes."""
    if not is_packed_address(address):
        return Path(address).stat().st_size
    folder, split, number = address.split(_END)
    return int(_packed_images(folder, cast("Split", split)).index[int(number)]["length"])


def suffix_of(address: str) -> str:
    """Return the suffix of an image's file, in lower case; empty in a packed dataset."""
    return "" if is_packed_address(address) else os.path.splitext(address)[1].lower()  # noqa: PTH122 - called once per image


@lru_cache(maxsize=4)
def _packed_images(folder: str, split: Split) -> PackedImages:
    return PackedImages(folder, read_pack(folder), split)
