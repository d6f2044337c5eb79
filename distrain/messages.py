"""Formats values, numbers, lists and errors for messages, and suggests what was probably meant."""

import difflib
import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

MEBIBYTE = 2**20  # bytes
PREFIX = "distrain: "  # of a sentence on standard error
MAX_VALUE = 60  # characters of a value that are shown
_CONTROL = {"Cc", "Zl", "Zp"}  # Unicode categories of control characters, line and paragraph separators


def print_error(sentence: str) -> None:
    """Print a sentence of distrain on standard error, on one line even if names in it have line breaks."""
    print(f"{PREFIX}{escape_control_characters(sentence)}", file=sys.stderr, flush=True)


def print_note(sentence: str) -> None:
    """Print a note on standard error, which no script reads, on one line."""
    print(f"note: {escape_control_characters(sentence)}", file=sys.stderr, flush=True)


def shown(value: Any) -> str:
    """Return a value as in a recipe, on one line and not longer than `MAX_VALUE`."""
    if isinstance(value, str):
        text = value if value and value.isprintable() else json.dumps(value, ensure_ascii=False)
    else:
        try:
            dump = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
            text = " ".join(dump.removesuffix("...\n").split())
        except yaml.YAMLError:  # a Python object, not from a file
            text = repr(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def nearest(word: str, known: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> str:
    """Return `; did you mean x, y or z?` with the known words most similar to `word`, or an empty string."""
    return did_you_mean(difflib.get_close_matches(word, list(known), n=count, cutoff=cutoff))


def did_you_mean(words: Sequence[str]) -> str:
    """Return `; did you mean x, y or z?`, or an empty string where there are no words."""
    return f"; did you mean {joined(words)}?" if words else ""


def joined(words: Sequence[str], *, last: str = "or") -> str:
    """Return `x, y or z`; needs at least one word."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 step`, `2 steps`; `plural` is for nouns whose plural is not formed with s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def byte_size(num_bytes: int) -> str:
    """Return a size in MiB, or in GiB from 1 GiB on."""
    mebibytes = num_bytes / MEBIBYTE
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.1f} MiB"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without a full stop, or its type where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def type_and_first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def escape_control_characters(text: str) -> str:
    r"""Return a message with all control characters as escape sequences, such as `\n`."""
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROL else c for c in text)
