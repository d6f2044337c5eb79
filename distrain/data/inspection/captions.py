"""Writes names below images: any text is printable, and cut to a width."""

import os
from bisect import bisect_right
from importlib.util import find_spec
from math import ceil
from pathlib import Path

from PIL import ImageFont

from distrain.messages import escape_control_characters

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def load_font(size: int) -> Font:
    """Return matplotlib's DejaVu Sans, which has accents, Greek and Cyrillic; Pillow's own font has only ASCII."""
    found = find_spec("matplotlib")  # not imported: that takes longer than a sheet
    folders = [] if found is None else found.submodule_search_locations or []
    for file in (Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf") for folder in folders):
        if file.is_file():
            return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)


def printable(name: str) -> str:
    """Return a file's name in one line, for a terminal or a font: bytes that are not text are escaped."""
    return escape_control_characters(os.fsencode(name).decode(errors="backslashreplace"))


def fitting(name: str, font: Font, width: int) -> str:
    """Return a name as printable text, cut where it is wider than `width` pixels."""
    text = printable(name)
    if len(text) <= width and font.getlength(text) <= width:
        return text
    lengths = range(min(len(text), width) + 1)
    too_long = bisect_right(lengths, width, key=lambda length: ceil(font.getlength(f"{text[:length]}...")))
    return f"{text[: max(0, too_long - 1)]}..."
