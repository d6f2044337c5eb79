"""Reads files that may be damaged, and writes files that are whole or not there."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from distrain.errors import RunError

T = TypeVar("T")
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError)  # of JSON, of its encoding, of pydantic, of what it lacks


def read_whole(path: Path, parse: Callable[[str], T]) -> T | None:
    """Return what `parse` makes of a file of a run; None where it is missing, or empty as a power failure leaves it.

    Raises `RunError` where it is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return parse(text) if text.strip() else None
    except FileNotFoundError:
        return None
    except _DAMAGED:
        raise RunError(f"{path} is damaged; move it away, and run the command again") from None


def read_readable(texts: Iterable[str], parse: Callable[[str], T]) -> list[T]:
    """Return what `parse` makes of each text, without those that are damaged."""
    found = []
    for text in texts:
        with suppress(*_DAMAGED):
            found.append(parse(text))
    return found


def texts_of(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the texts of the files that are still there."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield path.read_text(encoding="utf-8", errors="replace")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the path to write the file `path` under; it gets its name where the block ends well, else it is deleted.

    It stands in the same folder and has the same suffix. Raises `OSError` with `path` as its file.
    """
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # not the draft, which the user does not know
        raise
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
