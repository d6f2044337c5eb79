"""Writes TIFFs of kinds that Pillow does not write, byte by byte."""

import struct
from typing import Any

from numpy.typing import NDArray

_FORMATS = {"u": 1, "i": 2, "f": 3}  # of a sample, by numpy's kind


def tiff(samples: NDArray[Any], *, white_at_0: bool = False) -> bytes:
    """Return a TIFF of samples [height, width, channels], stored as they are."""
    height, width, channels = samples.shape
    colours = 2 if channels > 2 else 0 if white_at_0 else 1
    values = {
        256: [width],
        257: [height],
        258: [8 * samples.dtype.itemsize] * channels,
        259: [1],
        262: [colours],
        273: [0],  # where the samples begin
        277: [channels],
        278: [height],
        279: [samples.nbytes],
        339: [_FORMATS[samples.dtype.kind]] * channels,
    }
    begin = 8 + 2 + 12 * len(values) + 4
    beyond, entries = b"", b""
    after = sum(4 * len(numbers) for numbers in values.values() if len(numbers) > 1)
    values[273] = [begin + after]
    for tag, numbers in values.items():
        content = struct.pack(f"<{len(numbers)}I", *numbers)
        entries += struct.pack("<HHI", tag, 4, len(numbers))
        entries += content if len(numbers) == 1 else struct.pack("<I", begin + len(beyond))
        beyond += b"" if len(numbers) == 1 else content
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + beyond + samples.tobytes()
