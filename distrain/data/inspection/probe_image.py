"""Decodes one image file completely, and returns its flags and a digest of its pixels."""

import os
import re
from enum import IntFlag
from typing import NamedTuple

import numpy as np
import xxhash
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from distrain.data.inspection.open_image import open_image, suffix_of
from distrain.data.sources.decoders import TIFF_MARKS, UNREAD_TIFF, DecodeError, Pixels, decode
from distrain.messages import first_line

NO_DIGEST = bytes(16)
_FORMATS = {  # by suffix; MPO is a camera's JPEG followed by a second image
    ".bmp": {"BMP"},
    ".gif": {"GIF"},
    ".jpeg": {"JPEG", "MPO"},
    ".jpg": {"JPEG", "MPO"},
    ".pgm": {"PPM"},
    ".png": {"PNG"},
    ".ppm": {"PPM"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
    ".webp": {"WEBP"},
}
_DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_OTHER_FILES = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"version https://git-lfs", "a Git LFS pointer, whose image was never fetched"),
    (b"\x00\x05\x16\x07", "a macOS resource file"),
    (b"<", "HTML or XML text, perhaps the error page of a download"),
)


class ImageFlag(IntFlag):
    """Properties of an image file that a user may want to know."""

    UNREADABLE = 1
    NOT_AN_IMAGE = 2
    MISNAMED = 8  # another format than the suffix says; training reads it anyway
    CMYK = 16
    DEEP = 32  # more than 8 bits per channel
    ALPHA = 64
    PALETTE = 128
    GREY = 256
    ROTATED = 512  # by its EXIF orientation
    ANIMATED = 1024
    UNNOTICED = 2048  # an image with a suffix that training skips


BROKEN = ImageFlag.UNREADABLE | ImageFlag.NOT_AN_IMAGE


class ImageFacts(NamedTuple):
    """One file: width and height in pixels as in training (0 if unknown), and why it is broken or misnamed.

    `digest` is 16 bytes over the pixels and their shape, `NO_DIGEST` where they could not be decoded.
    """

    width: int
    height: int
    flags: int
    digest: bytes
    reason: str


NO_IMAGE = ImageFacts(0, 0, 0, NO_DIGEST, "")


def find_image(path: str) -> ImageFacts:
    """Find out by its first bytes whether a file without an image suffix is an image."""
    if not os.path.isfile(path):  # noqa: PTH113 - opening a pipe would block
        return NO_IMAGE
    try:
        with Image.open(path) as image:
            return ImageFacts(*image.size, ImageFlag.UNNOTICED, NO_DIGEST, str(image.format))
    except Exception:  # noqa: BLE001 - a file on which PIL fails is not an image
        return NO_IMAGE


def unreadable(reason: str) -> ImageFacts:
    """Return the facts of a file that could not be read."""
    return _broken(ImageFlag.UNREADABLE, reason)


def probe_image(path: str) -> ImageFacts:
    """Decode one file completely, as training does, and return its facts; never raises, whatever the file holds."""
    try:
        with open_image(path) as file:
            head = file.read(64)
            if not head:
                return _broken(ImageFlag.UNREADABLE, "the file is empty")
            file.seek(0)
            with Image.open(file) as image:
                flags = _flags(image, suffix_of(path))
                reason = f"{image.format}, named {suffix_of(path)}" if flags & ImageFlag.MISNAMED else ""
                file.seek(0)
                content = np.frombuffer(file.read(), np.uint8)
                try:
                    pixels = decode(content)
                except DecodeError as error:
                    return ImageFacts(*image.size, flags | ImageFlag.UNREADABLE, NO_DIGEST, str(error))
                file.seek(0)
                height, width, _ = pixels.shape
                return ImageFacts(width, height, flags, _digest(image, pixels), reason)
    except UnidentifiedImageError:
        if head[:4] in TIFF_MARKS:
            return _broken(ImageFlag.UNREADABLE, UNREAD_TIFF)
        kind = next((name for start, name in _OTHER_FILES if head.lstrip().startswith(start)), "of an unknown format")
        return _broken(ImageFlag.NOT_AN_IMAGE, kind)
    except FileNotFoundError:
        return _broken(ImageFlag.UNREADABLE, "a dangling link" if os.path.islink(path) else "it does not exist")  # noqa: PTH114
    except Exception as error:  # noqa: BLE001 - PIL raises errors of every kind for broken files
        return _broken(ImageFlag.UNREADABLE, (isinstance(error, OSError) and error.strerror) or first_line(error))


def _flags(image: Image.Image, suffix: str) -> ImageFlag:
    form, mode = str(image.format), image.mode
    flags = ImageFlag(0)
    found = {
        ImageFlag.MISNAMED: bool(suffix) and form not in _FORMATS[suffix],
        ImageFlag.CMYK: mode == "CMYK",
        ImageFlag.DEEP: mode in _DEEP or _is_stored_deep(image),
        ImageFlag.ALPHA: image.has_transparency_data,
        ImageFlag.PALETTE: mode in {"P", "PA"} and form != "GIF",  # a GIF always has one
        ImageFlag.GREY: mode in {"1", "L", "LA", *_DEEP},
        ImageFlag.ANIMATED: form in {"GIF", "WEBP"} and getattr(image, "n_frames", 1) > 1,
        ImageFlag.ROTATED: image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9),
    }
    for flag, is_there in found.items():
        flags |= flag if is_there else ImageFlag(0)
    return flags


def _is_stored_deep(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has 16 bits per channel in its file, of which Pillow keeps 8."""
    return isinstance(image, ImageFile.ImageFile) and any(";16" in str(tile.args) for tile in image.tile)


def _digest(image: Image.Image, pixels: Pixels) -> bytes:
    """Return a digest that is equal for two files with the same pixels, however each is compressed or coded.

    It covers `pixels`, the image as RGB, unless the file has more than these: depth, or transparency.
    """
    if image.mode in _DEEP or image.has_transparency_data:
        upright = ImageOps.exif_transpose(image)
        full = upright if image.mode in _DEEP else upright.convert("RGBA")
        if full.mode != "RGBA" or full.getchannel("A").getextrema() != (255, 255):
            return _hashed(full.mode, *full.size, full.tobytes())
    height, width, _ = pixels.shape
    return _hashed("RGB", width, height, pixels.data)


def _hashed(mode: str, width: int, height: int, content: bytes | memoryview) -> bytes:
    digest = xxhash.xxh3_128(f"{mode} {width}x{height}".encode())
    digest.update(content)
    return digest.digest()


def _broken(flag: ImageFlag, reason: str) -> ImageFacts:
    return ImageFacts(0, 0, flag, NO_DIGEST, re.sub(r"<_io\S+ name=.*>", "", reason).strip())
