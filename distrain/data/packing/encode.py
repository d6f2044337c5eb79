"""Encodes an image for a packed dataset: the bytes of its file, a new JPEG, or its pixels."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from distrain.data.packing.format import Bytes, Form, is_small
from distrain.data.sources.decoders import DecodeError, is_upright_jpeg
from distrain.data.sources.files import decode, unreadable
from distrain.errors import DataError
from distrain.messages import counted

_MAX_SIDE = 65_500  # of a JPEG, the limit of libjpeg


@dataclass(frozen=True)
class Stored:
    """An image as it is stored; `is_changed` where its pixels differ from those of the source."""

    content: Bytes
    shape: tuple[int, int, int]  # channels, height, width
    is_changed: bool


class BrokenImageError(DataError):
    """An image cannot be decoded, or cannot be stored as a JPEG."""


def broken(name: str, reason: str) -> BrokenImageError:
    """Return the error for an image that could not be read for this reason."""
    return BrokenImageError(str(unreadable(name, DecodeError(reason))))


def store_file(path: str, form: Form, *, expected_bytes: int) -> Stored:
    """Return the stored form of a file; raises `BrokenImageError` with its path where it cannot be decoded.

    Raises `DataError` where its size has changed since it was listed.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
        image = decode(content)
        is_kept = form.format == "jpeg" and is_upright_jpeg(content)
    except (OSError, DecodeError) as error:
        raise BrokenImageError(str(unreadable(path, error))) from None
    if len(content) != expected_bytes:
        raise DataError(f"image {path} has changed while it was packed; run the same command again")
    if is_kept and fitting_size(image.shape[1:], form) is None:
        return Stored(content, _shape(image), is_changed=False)
    return store_image(image, form, name=path)


def store_image(image: torch.Tensor, form: Form, *, name: str) -> Stored:
    """Return the stored form of an image uint8 [channels, height, width]; raises `DataError` for any other tensor."""
    if image.dtype != torch.uint8 or image.ndim != 3:
        kind = f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
        raise DataError(f"{name} is {kind}; a pack holds images uint8 [channels, height, width]")
    size = fitting_size(image.shape[1:], form)
    if size is not None:
        image = _resize(image, size, is_square=form.square)
    if form.format == "jpeg":
        return Stored(_encode(image, form.quality, name), _shape(image), is_changed=True)
    channels, height, width = _shape(image)
    pixels = image if is_small(height, width) else image.permute(1, 2, 0)
    return Stored(pixels.contiguous().numpy().reshape(-1), (channels, height, width), is_changed=size is not None)


def fitting_size(size: torch.Size, form: Form) -> int | None:
    """Return the shorter side that an image of this height and width is resized to; None where it is not resized."""
    if form.size is None:
        return None
    if form.square:
        return None if tuple(size) == (form.size, form.size) else form.size
    return form.size if min(size) > form.size else None


def _resize(image: torch.Tensor, size: int, *, is_square: bool) -> torch.Tensor:
    """Resize like the transform `Resize` with antialias and crop like `CenterCrop`, to the same pixels."""
    from torchvision.transforms.v2 import functional

    if min(image.shape[1:]) != size:
        image = functional.resize(image, [size], antialias=True)
    cropped: torch.Tensor = functional.center_crop(image, [size, size]) if is_square else image
    return cropped


def _encode(image: torch.Tensor, quality: int, name: str) -> Bytes:
    if image.shape[0] not in (1, 3):
        channels = counted(image.shape[0], "channel")
        raise DataError(f"{name} has {channels}, but a JPEG has 1 or 3; use --format pixels")
    if max(image.shape) > _MAX_SIDE:
        size = f"{image.shape[2]}x{image.shape[1]}"
        raise BrokenImageError(
            f"image {name} has {size} pixels, but a JPEG has at most {_MAX_SIDE:,} per side; save it smaller"
        )
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if image.shape[0] == 1 else pixels).save(stream, "JPEG", quality=quality)
    return np.frombuffer(stream.getbuffer(), np.uint8)


def _shape(image: torch.Tensor) -> tuple[int, int, int]:
    channels, height, width = image.shape
    return channels, height, width
