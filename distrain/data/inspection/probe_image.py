"""Decodes one image file whole, and returns its flags and a digest of its pixels."""

import os
import re
from enum import IntFlag
from typing import NamedTuple

import numpy as np
import xxhash
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from distrain.data.inspection.open_image import open_picture, suffix_of
from distrain.data.sources.decoders import TIFF_MARKS, UNREAD_TIFF, DecodeError, Pixels, decode
from distrain.messages import first_line

NO_DIGEST = bytes(16)
_FORMATS = {  # what each suffix promises; MPO is how cameras write a JPEG with a second picture behind it
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
    (b"version https://git-lfs", "a Git LFS pointer, its image was never fetched"),
    (b"\x00\x05\x16\x07", "a macOS resource file"),
    (b"<", "HTML or XML text, perhaps the error page of a download"),
)


class ImageFlag(IntFlag):
    """What is worth telling of an image file."""

    UNREADABLE = 1
    NOT_AN_IMAGE = 2
    MISNAMED = 8  # another format than the suffix says, which a training reads all the same
    CMYK = 16
    DEEP = 32  # more than 8 bits a channel
    ALPHA = 64
    PALETTE = 128
    GREY = 256
    ROTATED = 512  # by its EXIF orientation
    ANIMATED = 1024
    UNNOTICED = 2048  # an image under a suffix that a training passes over


BROKEN = ImageFlag.UNREADABLE | ImageFlag.NOT_AN_IMAGE


class ImageFacts(NamedTuple):
    """One file: width and height in pixels as training sees them (0 if unknown), and why it is broken or misnamed.

    `digest` is 16 bytes over the pixels and their shape, `NO_DIGEST` where they could not be decoded.
    """

    width: int
    height: int
    traits: int
    digest: bytes
    reason: str


NO_IMAGE = ImageFacts(0, 0, 0, NO_DIGEST, "")


def find_image(path: str) -> ImageFacts:
    """Say of what has no image suffix whether it holds an image all the same, by its first bytes."""
    if not os.path.isfile(path):  # noqa: PTH113 - nor is it opened: a pipe would be waited for
        return NO_IMAGE
    try:
        with Image.open(path) as image:
            return ImageFacts(*image.size, ImageFlag.UNNOTICED, NO_DIGEST, str(image.format))
    except Exception:  # noqa: BLE001 - whatever PIL stumbles over, it is no image
        return NO_IMAGE


def unreadable(reason: str) -> ImageFacts:
    """Return the facts of a file that could not be read."""
    return _broken(ImageFlag.UNREADABLE, reason)


def examine_image(path: str) -> ImageFacts:
    """Decode one file in full, as a training does, and say what it is; nothing is raised, whatever it holds."""
    try:
        with open_picture(path) as file:
            head = file.read(64)
            if not head:
                return _broken(ImageFlag.UNREADABLE, "the file is empty")
            file.seek(0)
            with Image.open(file) as image:
                traits = _flags(image, suffix_of(path))
                reason = f"{image.format}, named {suffix_of(path)}" if traits & ImageFlag.MISNAMED else ""
                file.seek(0)
                content = np.frombuffer(file.read(), np.uint8)
                try:
                    pixels = decode(content)
                except DecodeError as error:
                    return ImageFacts(*image.size, traits | ImageFlag.UNREADABLE, NO_DIGEST, str(error))
                file.seek(0)
                height, width, _ = pixels.shape
                return ImageFacts(width, height, traits, _digest(image, pixels), reason)
    except UnidentifiedImageError:
        if head[:4] in TIFF_MARKS:
            return _broken(ImageFlag.UNREADABLE, UNREAD_TIFF)
        kind = next((words for start, words in _OTHER_FILES if head.lstrip().startswith(start)), "of no known format")
        return _broken(ImageFlag.NOT_AN_IMAGE, kind)
    except FileNotFoundError:
        return _broken(ImageFlag.UNREADABLE, "a link to nothing" if os.path.islink(path) else "it does not exist")  # noqa: PTH114
    except Exception as error:  # noqa: BLE001 - a broken file leads PIL to errors of every kind
        return _broken(ImageFlag.UNREADABLE, (isinstance(error, OSError) and error.strerror) or first_line(error))


def _flags(image: Image.Image, suffix: str) -> ImageFlag:
    form, mode = str(image.format), image.mode
    traits = ImageFlag(0)
    found = {
        ImageFlag.MISNAMED: bool(suffix) and form not in _FORMATS[suffix],
        ImageFlag.CMYK: mode == "CMYK",
        ImageFlag.DEEP: mode in _DEEP or _is_stored_deep(image),
        ImageFlag.ALPHA: image.has_transparency_data,
        ImageFlag.PALETTE: mode in {"P", "PA"} and form != "GIF",  # a GIF has one always
        ImageFlag.GREY: mode in {"1", "L", "LA", *_DEEP},
        ImageFlag.ANIMATED: form in {"GIF", "WEBP"} and getattr(image, "n_frames", 1) > 1,
        ImageFlag.ROTATED: image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9),
    }
    for trait, is_there in found.items():
        traits |= trait if is_there else ImageFlag(0)
    return traits


def _is_stored_deep(image: Image.Image) -> bool:
    """Whether an image whose pixels are not loaded yet has 16 bits a channel in its file, where Pillow gives 8."""
    return isinstance(image, ImageFile.ImageFile) and any(";16" in str(tile.args) for tile in image.tile)


def _digest(image: Image.Image, pixels: Pixels) -> bytes:
    """Return a digest that two files share if they hold the same pixels, however each is compressed or coded.

    It is that of `pixels`, the image as RGB, but where these lack what the file has: depth, or transparency.
    """
    if image.mode in _DEEP or image.has_transparency_data:
        upright = ImageOps.exif_transpose(image)
        whole = upright if image.mode in _DEEP else upright.convert("RGBA")
        if whole.mode != "RGBA" or whole.getchannel("A").getextrema() != (255, 255):
            return _hashed(whole.mode, *whole.size, whole.tobytes())
    height, width, _ = pixels.shape
    return _hashed("RGB", width, height, pixels.data)


def _hashed(mode: str, width: int, height: int, content: bytes | memoryview) -> bytes:
    digest = xxhash.xxh3_128(f"{mode} {width}x{height}".encode())
    digest.update(content)
    return digest.digest()


def _broken(trait: ImageFlag, reason: str) -> ImageFacts:
    return ImageFacts(0, 0, trait, NO_DIGEST, re.sub(r"<_io\S+ name=.*>", "", reason).strip())
