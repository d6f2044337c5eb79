"""Shows pictures of a run: the sheet of the first training samples, and files as data URIs."""

import base64
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distrain.messages import counted
from distrain.runs.directory import RunDirectory
from distrain.runs.samples import read_sample_sheet

Address = Callable[[Path], str]  # returns where a picture of a run is, for `src`; empty where it cannot be shown
_HEADER_BYTES = 24
_SMALL = 100  # pixels
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class SheetView:
    """The sheet of the first training samples: its picture, a sentence on it, and each sample with its target."""

    picture: str
    label: str
    samples: Sequence[tuple[str, str]]


def show_sheet(run: RunDirectory, address: Address) -> SheetView | None:
    """Return the sheet of a run; None where it has none, or it is damaged."""
    sheet, picture = read_sample_sheet(run), address(run.sample_sheet)
    if sheet is None or not picture:
        return None
    samples = [(image.sample, image.target) for image in sheet.images]
    return SheetView(picture, f"{counted(len(samples), 'training sample')} as the network got them", samples)


def embed_picture(path: Path) -> str:
    """Return a PNG file as a data URI; empty where it cannot be read, or is something else."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    return as_data_uri(content) if content.startswith(_PNG) and len(content) > _HEADER_BYTES else ""


def is_small(path: Path) -> bool:
    """Return whether a PNG has fewer than `_SMALL` pixels in width and height."""
    with suppress(OSError, struct.error), path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(_HEADER_BYTES)[16:])
        return bool(max(width, height) < _SMALL)
    return False


def as_data_uri(png: bytes) -> str:
    """Return a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
