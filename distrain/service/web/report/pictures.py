"""Embeds pictures of a run in a report: files as data URIs, and the sheet of the first training samples."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distrain.messages import counted
from distrain.runs.directory import RunDirectory
from distrain.runs.samples import read_sample_sheet

_HEADER_BYTES = 24
_SMALL = 100  # pixels
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class SheetView:
    """The sheet of the first training samples: its picture, a sentence on it, and each sample with its target."""

    picture: str
    label: str
    samples: Sequence[tuple[str, str]]


def show_sheet(run: RunDirectory) -> SheetView | None:
    """Return the sheet of a run; None where it has none, or it is damaged."""
    sheet, picture = read_sample_sheet(run), read_picture(run.sample_sheet)
    if sheet is None or not picture:
        return None
    samples = [(image.sample, image.target) for image in sheet.images]
    return SheetView(picture, f"{counted(len(samples), 'training sample')} as the network got them", samples)


def read_picture(path: Path) -> str:
    """Return a PNG file as a data URI; empty where it cannot be read, or is something else."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    return as_data_uri(content) if content.startswith(_PNG) and len(content) > _HEADER_BYTES else ""


def is_small(picture: str) -> bool:
    """Return whether a PNG in a data URI has fewer than `_SMALL` pixels in width and height."""
    if not picture:
        return False
    header = base64.b64decode(picture.partition("base64,")[2][:32])  # 24 bytes, of which the last 8 are the size
    width, height = struct.unpack(">II", header[16:24])
    return bool(max(width, height) < _SMALL)


def as_data_uri(png: bytes) -> str:
    """Return a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
