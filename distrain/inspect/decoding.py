"""Owns what one image file is found to be: decoded whole, its traits, and a digest of its pixels."""

import os
import re
from collections.abc import Sequence
from enum import IntFlag
from typing import NamedTuple

import xxhash
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from distrain.inspect.opening import open_picture, suffix_of

NO_DIGEST = bytes(16)
LARGEST_DECODED = 500_000_000  # pixels; one picture more would take several GB in each process
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
_DECODED = frozenset().union(*_FORMATS.values())
_BY_TORCHVISION = {".jpeg", ".jpg", ".png"}  # these suffixes a training gives to torchvision, whatever is inside
_OF_TORCHVISION = {"JPEG", "MPO", "PNG", "GIF", "WEBP"}
_DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_OTHER_FILES = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"version https://git-lfs", "a Git LFS pointer, its image was never fetched"),
    (b"\x00\x05\x16\x07", "a macOS resource file"),
    (b"<", "HTML or XML text, perhaps the error page of a download"),
)


class Trait(IntFlag):
    """What is worth telling of an image file."""

    UNREADABLE = 1
    NOT_AN_IMAGE = 2
    UNTRAINABLE = 4  # a format that a training cannot read under this suffix
    MISNAMED = 8  # another format than the suffix says, which a training reads all the same
    CMYK = 16
    DEEP = 32  # more than 8 bits a channel
    ALPHA = 64
    PALETTE = 128
    GREY = 256
    ROTATED = 512  # by its EXIF orientation
    ANIMATED = 1024
    UNNOTICED = 2048  # an image under a suffix that a training passes over


BROKEN = Trait.UNREADABLE | Trait.NOT_AN_IMAGE | Trait.UNTRAINABLE


class ImageFacts(NamedTuple):
    """One file: width and height in pixels as training sees them (0 if unknown), and why it is broken or misnamed.

    `digest` is 16 bytes over the pixels and their shape, `NO_DIGEST` where they could not be decoded.
    """

    width: int
    height: int
    traits: int
    digest: bytes
    reason: str


def examine_images(paths: Sequence[str]) -> list[ImageFacts]:
    """Decode each picture in full, by its address."""
    return [examine_image(path) for path in paths]


def find_images(paths: Sequence[str]) -> list[ImageFacts]:
    """Say of files that have no image suffix which of them hold an image all the same, by their first bytes."""
    found = []
    for path in paths:
        try:
            with Image.open(path) as image:
                found.append(ImageFacts(*image.size, Trait.UNNOTICED, NO_DIGEST, str(image.format)))
        except Exception:  # noqa: BLE001 - whatever PIL stumbles over, it is no image
            found.append(ImageFacts(0, 0, 0, NO_DIGEST, ""))
    return found


def examine_image(path: str) -> ImageFacts:
    """Decode one file in full and say what it is; nothing is raised, whatever it holds."""
    try:
        with open_picture(path) as file:
            head = file.read(64)
            if not head:
                return _broken(Trait.UNREADABLE, "the file is empty")
            file.seek(0)
            with Image.open(file) as image:
                return _examine(image, suffix_of(path))
    except UnidentifiedImageError:
        kind = next((words for start, words in _OTHER_FILES if head.lstrip().startswith(start)), "of no known format")
        return _broken(Trait.NOT_AN_IMAGE, kind)
    except FileNotFoundError:
        return _broken(Trait.UNREADABLE, "a link to nothing" if os.path.islink(path) else "gone meanwhile")  # noqa: PTH114
    except Exception as error:  # noqa: BLE001 - a broken file leads PIL to errors of every kind
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return _broken(Trait.UNREADABLE, (words or type(error).__name__).splitlines()[0])


def _examine(image: Image.Image, suffix: str) -> ImageFacts:
    form, mode = str(image.format), image.mode
    traits = _traits(image, suffix)
    reason = f"{form}, named {suffix}" if traits & (Trait.MISNAMED | Trait.UNTRAINABLE) else ""
    if form not in _DECODED:  # not all of PIL's formats are harmless to decode
        return ImageFacts(*image.size, traits, NO_DIGEST, reason)
    if image.width * image.height > LARGEST_DECODED:
        size = f"{image.width}x{image.height} pixels, too many to decode"
        return ImageFacts(*image.size, traits | Trait.UNREADABLE, NO_DIGEST, size)
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        traits |= Trait.ROTATED
        image = ImageOps.exif_transpose(image)
    return ImageFacts(*image.size, traits, _digest(image, mode), reason)


def _traits(image: Image.Image, suffix: str) -> Trait:
    form, mode = str(image.format), image.mode
    traits = Trait(0)
    is_animated = form in {"GIF", "WEBP"} and getattr(image, "n_frames", 1) > 1
    if suffix and form not in _FORMATS[suffix]:
        is_lost = suffix in _BY_TORCHVISION and (form not in _OF_TORCHVISION or is_animated)
        traits |= Trait.UNTRAINABLE if is_lost or form not in _DECODED else Trait.MISNAMED
    found = {
        Trait.CMYK: mode == "CMYK",
        Trait.DEEP: mode in _DEEP,
        Trait.ALPHA: image.has_transparency_data,
        Trait.PALETTE: mode in {"P", "PA"} and form != "GIF",  # a GIF has one always
        Trait.GREY: mode in {"1", "L", "LA", *_DEEP},
        Trait.ANIMATED: is_animated,
    }
    for trait, is_there in found.items():
        traits |= trait if is_there else Trait(0)
    return traits


def _digest(image: Image.Image, mode: str) -> bytes:
    """Return a digest that two files share if they hold the same pixels, however each is compressed or coded."""
    if mode in _DEEP:  # as RGB they would be clipped to 8 bits
        pixels = image
    elif image.has_transparency_data:
        pixels = image.convert("RGBA")
        if pixels.getchannel("A").getextrema() == (255, 255):
            pixels = pixels.convert("RGB")
    else:
        pixels = image if mode == "RGB" else image.convert("RGB")
    digest = xxhash.xxh3_128(f"{pixels.mode} {pixels.width}x{pixels.height}".encode())
    digest.update(pixels.tobytes())
    return digest.digest()


def _broken(trait: Trait, reason: str) -> ImageFacts:
    return ImageFacts(0, 0, trait, NO_DIGEST, re.sub(r"<_io\S+ name=.*>", "", reason).strip())
