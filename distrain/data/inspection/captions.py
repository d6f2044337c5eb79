"""Writes names below images: any text is printable, and cut to a width."""

import os
from bisect import bisect_right
from math import ceil

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def printable(name: str) -> str:
    """Return a file's name with bytes that are not text escaped, for a terminal or a font."""
    return os.fsencode(name).decode(errors="backslashreplace")


def fitting(name: str, font: Font, width: int) -> str:
    """Return a name as printable text, cut where it is wider than `width` pixels."""
    text = printable(name)
    if len(text) <= width and font.getlength(text) <= width:
        return text
    lengths = range(min(len(text), width) + 1)
    too_long = bisect_right(lengths, width, key=lambda length: ceil(font.getlength(f"{text[:length]}...")))
    return f"{text[: max(0, too_long - 1)]}..."
