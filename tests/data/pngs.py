"""Writes PNGs of every kind byte by byte: all colour types, bit depths, with and without interlacing."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type: grey, RGB, palette, grey and alpha, RGB and alpha
KINDS = [
    (colour_type, depth)
    for colour_type, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
    for depth in depths
]
_WHOLE = [(0, 0, 1, 1)]
_ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def png(
    samples: NDArray[np.int64], *, colour_type: int, depth: int, is_interlaced: bool, chunks: dict[bytes, bytes]
) -> bytes:
    """Return a PNG of samples [height, width, channels]; `chunks` stand before its pixels."""
    height, width, _ = samples.shape
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(is_interlaced))
    passes = _ADAM7 if is_interlaced else _WHOLE  # first row and column, and the steps between them
    rows = b"".join(_rows(samples[top::down, left::right], depth) for top, left, down, right in passes)
    every = {b"IHDR": head, **chunks, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return SIGNATURE + b"".join(chunk(kind, content) for kind, content in every.items())


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _rows(samples: NDArray[np.int64], depth: int) -> bytes:
    if not samples.size:
        return b""
    bits = samples.reshape(len(samples), -1)[..., None] >> np.arange(depth - 1, -1, -1) & 1
    packed = np.packbits(bits.reshape(len(samples), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)  # each row without a filter
