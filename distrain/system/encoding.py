"""Makes any text printable on a terminal of any encoding: missing characters are approximated, never an error."""

import codecs
import io
import os
import sys

_ERRORS = "distrain"  # the name of the error handler
# ASCII approximations of the characters that reports use.
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
    r"""Make standard output and standard error print every string, whatever their encoding.

    The bytes of a file name that is invalid in the encoding are printed unchanged; the drawing characters of reports
    become ASCII; any other character becomes its escape sequence, such as `\u65e5`.
    """
    codecs.register_error(_ERRORS, _encode_anyway)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else it is closed, or belongs to a notebook or a test
            stream.reconfigure(errors=_ERRORS)


def printable_name(name: str) -> str:
    """Return a name for a plot or a table, with invalid bytes and line breaks as escape sequences."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _encode_anyway(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name, as decoded by os.fsdecode
        return bytes([ord(character) - 0xDC00]), error.start + 1
    approximation = character.translate(_APPROXIMATIONS)
    if approximation == character:
        approximation = character.encode("ascii", "backslashreplace").decode()
    return approximation, error.start + 1
