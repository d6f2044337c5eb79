"""Chooses the decoder for an image's bytes, and converts the result to 8-bit RGB.

simplejpeg (libjpeg-turbo) reads grey and colour JPEGs: a photograph in 0.74 of Pillow's time, 32x32 pixels in a tenth.
torchcodec, where version 0.17 or newer is installed, reads plain 8-bit PNGs in 0.7 (small ones) to 0.9 of Pillow's
time; older versions write past their buffers. Pillow reads everything else, and everything that these two refuse, so
that pixels and error messages are Pillow's whatever is installed. torchvision's decoders are not used: one wrong byte
of a PNG crashes the process with a segmentation fault.

Each property of a file has one rule: EXIF orientation is applied; of 16 bits the upper 8 are kept; transparent pixels
are blended with white, as most viewers show them; of several frames or pages the first one is read; an image of more
than `MAX_PIXELS` pixels is refused.

A JPEG can be decoded directly at 1/2, 1/4 or 1/8 of its size, from the lower frequencies of its 8x8 blocks. With a
`decode_size`, the smallest of these sizes is used whose shorter side is not below it.
"""

import io
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from distrain.messages import first_line

Bytes = NDArray[np.uint8]
Pixels = NDArray[np.uint8]  # [height, width, 3]

MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs
MIN_TORCHCODEC = (0, 17)
TIFF_MARKS = {b"II*\0", b"MM\0*"}
UNREAD_TIFF = "it is a TIFF of an unsupported kind; save it as a PNG, with 8 or 16 bits"
_COLOURS_OF_TIFF = 262  # the tag PhotometricInterpretation: how values map to colours
_PIXELS_AT_ONCE = 2**20  # of a large image that are converted to RGB at a time
_MAX_WEBP = 16_383  # pixels per side, the limit of the format
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_COLOURS = {"Gray", "RGB", "YCbCr"}  # of a JPEG, as simplejpeg names them
_MIN_SEGMENT, _SCAN, _APP1 = 0xC0, 0xDA, 0xE1  # markers of a JPEG
_ORIENTATION_TAGS = (b"\x01\x12", b"\x12\x01", b"tiff:Orientation")  # of EXIF in either byte order, and of XMP
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {  # by EXIF orientation; any other value is as 1
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, 1),
}
# The chunks that leave a PNG's pixels as they are stored; libpng prints warnings about colour profiles.
_PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"tIME", b"tEXt"}
# Keywords of plain text; Pillow reads an orientation or a colour key from others.
_PLAIN_TEXTS = {b"Author", b"Comment", b"Copyright", b"Creation Time", b"Description", b"Disclaimer", b"Software"}
_PLAIN_TEXTS |= {b"Source", b"Title", b"Warning", b"date:create", b"date:modify", b"date:timestamp"}
_MAX_KEYWORD = 79  # bytes, the limit of the format


class DecodeError(Exception):
    """An image cannot be decoded; the message gives the reason, without the image's name."""


def decode(content: Bytes, *, decode_size: int | None = None) -> Pixels:
    """Return the image in a file's bytes as RGB, upright, uint8 [height, width, 3], contiguous.

    Raises `DecodeError`, whatever the bytes hold.
    """
    try:
        pixels = None
        if _is_jpeg(content):
            pixels = _decode_jpeg(content, decode_size)
        elif content[:8].tobytes() == _PNG:
            pixels = _decode_png(content)
        return _decode_by_pillow(content, decode_size) if pixels is None else pixels
    except Exception as error:
        raise DecodeError(_reason(error, content)) from error


def is_upright_jpeg(content: Bytes) -> bool:
    """Whether a decodable file is a JPEG without an EXIF rotation or flip."""
    return _is_jpeg(content) and (not _may_be_rotated(content) or _upright_transform(content) is None)


def load_decoders() -> None:
    """Import the decoders once, in a process that forks others, instead of in each of these."""
    Image.preinit()
    png_decoder()


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a Pillow image of any mode as upright RGB; raises `ValueError` if the range of its pixels is unknown."""
    return _flatten(ImageOps.exif_transpose(image))


@cache
def png_decoder() -> Callable[[Any], Any] | None:
    """Return torchcodec's PNG decoder, which maps a tensor of bytes to one of pixels; None where it is not installed.

    An older version counts as not installed, and so does one that does not load with the installed torch.
    """
    try:
        if tuple(map(int, metadata.version("torchcodec").split(".")[:2])) < MIN_TORCHCODEC:
            return None
        import torchcodec.decoders
    except (ImportError, OSError, RuntimeError, ValueError):
        return None
    decoder: Callable[[Any], Any] = torchcodec.decoders.decode_png
    return decoder


def _decode_jpeg(content: Bytes, decode_size: int | None) -> Pixels | None:
    """Return a JPEG's pixels, or None where Pillow must read it: in CMYK, damaged, or at a reduced size.

    simplejpeg refuses files that libjpeg warns about, some of which Pillow reads, and rounds CMYK differently.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in _COLOURS or height * width > MAX_PIXELS:
            return None
        if decode_size is not None and min(height, width) >= 2 * decode_size:
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)
    except ValueError:
        return None
    turn = _upright_transform(content) if _may_be_rotated(content) else None
    return pixels if turn is None else np.array(turn(pixels), order="C")


def _is_jpeg(content: Bytes) -> bool:
    return content[:3].tobytes() == _JPEG


def _upright_transform(content: Bytes) -> Callable[[Pixels], Pixels] | None:
    """Return the function that makes an image upright, None where it is already; raises what Pillow raises."""
    with Image.open(io.BytesIO(content.data)) as image:  # reads only the header
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))


def _may_be_rotated(content: Bytes) -> bool:
    """Whether a JPEG has metadata that could contain an orientation, or a header that only Pillow should read."""
    view, place = content.data, 2
    while place + 4 <= len(view) and view[place] == 0xFF:  # the segments before the scan: marker, length, content
        marker, end = view[place + 1], place + 2 + (view[place + 2] << 8 | view[place + 3])
        if marker == _SCAN:
            return False
        if marker == _APP1 and any(tag in bytes(view[place:end]) for tag in _ORIENTATION_TAGS):
            return True
        if marker < _MIN_SEGMENT or marker == 0xFF:
            return True
        place = end
    return True


def _decode_png(content: Bytes) -> Pixels | None:
    """Return the pixels of a plain PNG, None where Pillow must read it."""
    decoder = png_decoder()
    if decoder is None or not _is_plain_png(content):
        return None
    import torch

    if not content.flags.writeable:
        content = content.copy()  # torch would warn
    try:
        pixels: Pixels = decoder(torch.from_numpy(content)).permute(1, 2, 0).numpy()
    except (RuntimeError, ValueError):
        return None
    return pixels


def _is_plain_png(content: Bytes) -> bool:
    """Whether a PNG has 8 bits of grey or RGB, and no metadata that changes how they are shown."""
    head = content[:26].tobytes()
    if len(head) < 26 or head[24] != 8 or head[25] not in (0, 2):
        return False
    if int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big") > MAX_PIXELS:
        return False
    place, kind = len(_PNG), b""
    while kind != b"IEND" and place + 12 <= len(content):  # the chunks: length, kind, content, checksum
        kind = content[place + 4 : place + 8].tobytes()
        if kind not in _PLAIN_CHUNKS:
            return False
        if kind == b"tEXt":
            keyword, _, _ = content[place + 8 : place + 9 + _MAX_KEYWORD].tobytes().partition(b"\0")
            if keyword not in _PLAIN_TEXTS:
                return False
        place += 12 + int.from_bytes(content[place : place + 4].tobytes(), "big")
    return kind == b"IEND"


def _decode_by_pillow(content: Bytes, decode_size: int | None) -> Pixels:
    head = content[:30].tobytes()
    if head[:4] == b"RIFF" and head[12:16] == b"VP8X":  # Pillow allocates two canvases of this size without a check
        _check_size(*(1 + int.from_bytes(head[place : place + 3], "little") for place in (24, 27)), limit=_MAX_WEBP)
    with Image.open(io.BytesIO(content.data)) as image:
        if image.format == "EPS":  # Pillow would start Ghostscript
            raise ValueError("it is a PostScript file, which is not supported")
        _check_size(*image.size)
        if decode_size is not None and _is_jpeg(content) and min(image.size) >= 2 * decode_size:
            image.draft(None, (decode_size, decode_size))
        has_white_at_0 = _has_white_at_0(image)
        ImageOps.exif_transpose(image, in_place=True)
        pixels = _flatten_in_strips(image)
        return 255 - pixels if has_white_at_0 else pixels


def _has_white_at_0(image: Image.Image) -> bool:
    """Whether a newly opened image has 16 bits with 0 for white; Pillow inverts such images of 8 bits itself."""
    if image.format != "TIFF" or not image.mode.startswith("I;16"):
        return False
    tiff: Any = image
    return bool(tiff.tag_v2.get(_COLOURS_OF_TIFF) == 0)


def _flatten_in_strips(image: Image.Image) -> Pixels:
    if image.width * image.height <= _PIXELS_AT_ONCE:
        return np.array(_flatten(image))
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    num_rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, num_rows):  # converting the whole image would need several full-size copies
        end = min(top + num_rows, image.height)
        pixels[top:end] = np.asarray(_flatten(image.crop((0, top, image.width, end))))
    return pixels


def _check_size(width: int, height: int, *, limit: int = MAX_PIXELS) -> None:
    if width * height > MAX_PIXELS or max(width, height) > limit:
        size = f"{width}x{height} pixels"
        raise ValueError(f"it has {size}, more than the limit of {MAX_PIXELS:,}; save it smaller")


def _flatten(image: Image.Image) -> Image.Image:
    """Return an upright image as RGB; one that is RGB already is returned itself."""
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, whose range is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _upper_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upper_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and not (values.min() >= 0 and values.max() <= 0xFFFF):
        raise ValueError("it has pixels of more than 16 bits; save it with 8 or 16 bits")
    grey = (values >> 8).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):  # the value that is transparent
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _reason(error: Exception, content: Bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        return UNREAD_TIFF if content[:4].tobytes() in TIFF_MARKS else "its format is unknown"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    return first_line(error)
