"""Lets any text be printed on a terminal of any encoding: what it does not have is approximated, never an error."""

import codecs
import io
import os
import sys

_ERRORS = "distrain"  # the name of the error handler
# What reports draw with, in ASCII.
_APPROXIMATIONS = str.maketrans(
    {
        **dict(zip("▁▂▃▄▅▆▇█", "_.-~=+*#", strict=True)),
        **dict.fromkeys("─━╸╺", "-"),
        **dict.fromkeys("│┃▌▐▀▒░▓", "|"),
        **dict.fromkeys("•·●", "*"),
        **dict.fromkeys("\u2018\u2019", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        "…": "...",
        "\u00d7": "x",
        "—": "-",
        "\u2013": "-",
        "→": "->",
        "✓": "ok",
    }
)


def accept_any_text() -> None:
    r"""Have standard output and standard error print every string, whatever their encoding.

    A file name that is not valid in it is printed byte by byte, as it is; the signs that reports draw with become
    ASCII; any other character becomes its escape sequence, such as `\u65e5`.
    """
    codecs.register_error(_ERRORS, _encode_anyway)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else it is closed, or belongs to a notebook or a test
            stream.reconfigure(errors=_ERRORS)


def printable_name(name: str) -> str:
    """Return a name as a font or a table can take it: bytes that are no text, and line breaks, as escape sequences."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _encode_anyway(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name, as os.fsdecode gives it
        return bytes([ord(character) - 0xDC00]), error.start + 1
    approximation = character.translate(_APPROXIMATIONS)
    if approximation == character:
        approximation = character.encode("ascii", "backslashreplace").decode()
    return approximation, error.start + 1
