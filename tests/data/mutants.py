"""Makes small images of every format and damages them, each as a function of its format and a seed."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.data.pngs import CHANNELS, KINDS, SIGNATURE, chunk, png

EXTREMES = (
    b"\0\0",
    b"\xff\xff",
    b"\x7f\xff",
    b"\xff\x7f",
    b"\x80\0",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
)


def mutant(form: str, seed: int) -> bytes:
    """Return a damaged picture; some mutants of a PNG have checksums that are right again."""
    draws = random.Random(f"{form}, {seed}")
    content = bytearray(PICTURES[form](draws))
    if form == "png" and draws.random() < 0.25:
        return _with_damaged_rows(bytes(content), draws)
    for _ in range(draws.choice((1, 1, 2, 4))):
        _damage(content, draws)
    return _with_right_checksums(bytes(content)) if form == "png" and draws.random() < 0.6 else bytes(content)


def _picture(draws: random.Random, *modes: str) -> Image.Image:
    height, width = draws.randrange(1, 48), draws.randrange(1, 48)
    grain = np.random.default_rng(draws.randrange(2**32)).integers(0, 64, (height, width, 3))
    slope = np.linspace(0, 190, width)[None, :, None] + np.zeros((height, 1, 1))
    return Image.fromarray((slope + grain).astype(np.uint8)).convert(draws.choice(modes))


def _several(draws: random.Random, image: Image.Image) -> dict[str, Any]:
    """Return the options that save a second frame, in a part of the pictures."""
    return {} if draws.random() < 0.8 else {"save_all": True, "append_images": [image.rotate(180)]}


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _metadata(draws: random.Random) -> dict[str, Any]:
    if draws.random() < 0.5:
        return {}
    found = Image.Exif()
    found[0x0112] = draws.randrange(1, 9)
    found[0x010E] = "a picture"
    return {"exif": found}


def _jpeg(draws: random.Random) -> bytes:
    options = {"quality": draws.choice((40, 90)), "progressive": draws.random() < 0.4, **_metadata(draws)}
    content = _saved(_picture(draws, "RGB", "RGB", "L", "CMYK"), "JPEG", **options)
    if b"Adobe" in content and draws.random() < 0.5:  # YCCK
        place = content.index(b"Adobe") + 11
        content = content[:place] + b"\2" + content[place + 1 :]
    return content


def _png(draws: random.Random) -> bytes:
    if draws.random() < 0.5:
        image = _picture(draws, "RGB", "RGB", "L", "P", "RGBA")
        return _saved(image, "PNG", **_metadata(draws), **_several(draws, image))
    colour_type, depth = draws.choice(KINDS)
    numbers = np.random.default_rng(draws.randrange(2**32))
    height, width = draws.randrange(1, 20), draws.randrange(1, 20)
    samples = numbers.integers(0, 2**depth, (height, width, CHANNELS[colour_type]))
    chunks = {b"PLTE": numbers.bytes(3 * min(2**depth, 256))} if colour_type == 3 else {}
    if draws.random() < 0.3 and colour_type in (0, 2, 3):
        chunks[b"tRNS"] = numbers.bytes({0: 2, 2: 6, 3: 5}[colour_type])
    return png(samples, colour_type=colour_type, depth=depth, is_interlaced=draws.random() < 0.5, chunks=chunks)


def _webp(draws: random.Random) -> bytes:
    image = _picture(draws, "RGB", "RGBA")
    return _saved(image, "WEBP", lossless=draws.random() < 0.5, **_metadata(draws), **_several(draws, image))


def _gif(draws: random.Random) -> bytes:
    image = _picture(draws, "P", "L", "RGBA")
    return _saved(image, "GIF", interlace=draws.randrange(2), **_several(draws, image))


def _bmp(draws: random.Random) -> bytes:
    return _saved(_picture(draws, "RGB", "L", "P", "1", "RGBA"), "BMP")


def _tiff(draws: random.Random) -> bytes:
    compression = draws.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"))
    modes = ("RGB", "L") if compression == "jpeg" else ("RGB", "L", "P", "1", "RGBA", "CMYK", "I;16")
    image = _picture(draws, *(mode for mode in modes if mode != "I;16"))
    if "I;16" in modes and draws.random() < 0.1:
        image = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    return _saved(image, "TIFF", compression=compression, **_metadata(draws))


def _ppm(draws: random.Random) -> bytes:
    return _saved(_picture(draws, "RGB", "L", "1"), "PPM")


PICTURES: dict[str, Callable[[random.Random], bytes]] = {
    "jpeg": _jpeg,
    "png": _png,
    "webp": _webp,
    "gif": _gif,
    "bmp": _bmp,
    "tiff": _tiff,
    "ppm": _ppm,
}


def _damage(content: bytearray, draws: random.Random) -> None:
    """Flip, overwrite, take away, put in, repeat, or cut off bytes; half of the time near the head."""
    if not content:
        return
    most = len(content) if draws.random() < 0.5 else min(len(content), 120)
    place, length = draws.randrange(most), draws.randrange(1, 24)
    way = draws.randrange(7)
    if way == 0:
        content[place] ^= 1 << draws.randrange(8)
    elif way == 1:
        content[place] = draws.randrange(256)
    elif way == 2:
        extreme = draws.choice(EXTREMES)
        content[place : place + len(extreme)] = extreme
    elif way == 3:
        del content[place : place + length]
    elif way == 4:
        content[place:place] = draws.randbytes(length)
    elif way == 5:
        content[place:place] = content[place : place + length] * draws.randrange(1, 30)
    else:
        del content[draws.randrange(len(content)) :]


def _chunks(content: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the kinds and contents of a PNG's chunks, as far as they are whole, and the bytes after them."""
    found, place = [], len(SIGNATURE)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        if place + 12 + length > len(content):
            break
        found.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return found, content[place:]


def _with_right_checksums(content: bytes) -> bytes:
    found, rest = _chunks(content)
    return content[: len(SIGNATURE)] + b"".join(chunk(kind, body) for kind, body in found) + rest


def _with_damaged_rows(content: bytes, draws: random.Random) -> bytes:
    """Damage what a PNG's compressed data holds, filters and samples, and compress it again."""
    found, rest = _chunks(content)
    rows = bytearray(zlib.decompress(b"".join(body for kind, body in found if kind == b"IDAT")))
    _damage(rows, draws)
    others = [(kind, body) for kind, body in found if kind != b"IDAT"]
    others.insert(-1, (b"IDAT", zlib.compress(bytes(rows))))
    return SIGNATURE + b"".join(chunk(kind, body) for kind, body in others) + rest
