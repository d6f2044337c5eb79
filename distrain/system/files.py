"""Reads files that may be damaged, and writes files atomically."""

import errno
import json
import math
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel

from distrain.errors import RunError, StorageError

T = TypeVar("T")
MAX_BYTES = 1 << 26  # of a file that is read whole: far more than distrain writes into one
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # from JSON, or missing
_NOT_REGULAR = {errno.ELOOP, errno.ENXIO}  # a link, a socket


class NotRegularError(ValueError):
    """A path is a link, a folder, a pipe or a device, or the file is far larger than one of this kind."""


def strict_json(value: object, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Return a value as strict JSON, in which a number that is not finite is null."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    except ValueError:
        finite = _without_not_finite(value)
        return json.dumps(finite, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _without_not_finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_not_finite(item) for key, item in value.items()}
    return [_without_not_finite(item) for item in value] if isinstance(value, list | tuple) else value


def to_json(model: BaseModel) -> str:
    """Return a model as strict JSON, which `model.model_validate(json.loads(text))` reads back.

    Unlike pydantic's `model_dump_json`, it supports file names that are not UTF-8.
    """
    return strict_json(model.model_dump(), indent=1)


def open_regular(path: Path) -> IO[bytes]:
    """Open a file to read bytes, at once whatever it is: others can write to some runs, and a pipe has no end.

    Raises `NotRegularError` for anything but a file, also for a link, which could lead anywhere.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except IsADirectoryError:
        raise NotRegularError(f"{path} is a folder") from None
    except OSError as error:
        if error.errno in _NOT_REGULAR:
            raise NotRegularError(f"{path} is not a regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotRegularError(f"{path} is not a regular file")
    return file


def open_to_append(path: Path) -> IO[str]:
    """Open or create a file of text; raises `StorageError` for a link, which could lead to any file, and for a pipe."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _NOT_REGULAR:
            raise StorageError(f"{path} is not a file; delete it") from None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise StorageError(f"{path} is not a file; delete it")
    return os.fdopen(file, "a+", encoding="utf-8")


def read_regular(path: Path, *, errors: str = "strict", max_bytes: int | None = MAX_BYTES) -> str:
    """Return the text of a file; raises what `open_regular` does, also where it has more than `max_bytes`."""
    with open_regular(path) as file:
        if max_bytes is not None and os.fstat(file.fileno()).st_size > max_bytes:
            raise NotRegularError(f"{path} is larger than {max_bytes} bytes")
        return file.read().decode(errors=errors)


def read_whole(path: Path, parse: Callable[[str], T]) -> T | None:
    """Return a file of a run as parsed by `parse`; None where it is missing, or empty after a power failure.

    Raises `RunError` where it is damaged.
    """
    try:
        text = read_regular(path)
        return parse(text) if text.strip() else None
    except FileNotFoundError:
        return None
    except _DAMAGED:
        raise RunError(f"{path} is damaged; move it away, and run the command again") from None


def read_readable(texts: Iterable[str], parse: Callable[[str], T]) -> list[T]:
    """Return the results of `parse` for all texts that are not damaged."""
    found = []
    for text in texts:
        with suppress(*_DAMAGED):
            found.append(parse(text))
    return found


def texts_of(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the texts of the files that still exist."""
    for path in paths:
        with suppress(FileNotFoundError, NotRegularError):
            yield read_regular(path, errors="replace")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` when the block succeeds, else deleted.

    It is in the folder of `path`, created if missing, with the same suffix. Raises `OSError` with `path` as its name.
    """
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # not that of the draft, which means nothing to the user
        raise
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path`, then rename it there: readers see the old file or the new one, with the old mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}")
    try:
        draft.write_text(text, encoding="utf-8")
        with suppress(FileNotFoundError):
            if stat.S_ISREG(mode := path.lstat().st_mode):
                draft.chmod(stat.S_IMODE(mode))
        draft.replace(path)
    except OSError as error:  # a full disk: the partial draft would take up space
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        error.filename, error.filename2 = str(path), None  # not that of the draft, which means nothing to the user
        raise


def sync(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PatientFile:
    """Appends lines to a file; lines that cannot be written wait in memory, and are written in order with a later one.

    The file is opened at the first line, and again after each error: a network file system may have lost it.
    """

    def __init__(self, path: Path, *, most_waiting: int | None = None, is_shared: bool = False) -> None:
        """Keep at most the newest `most_waiting` lines; `is_shared` if other processes append to the file, too."""
        self.path = path
        self.num_lost = 0  # lines dropped because too many waited
        self._waiting: deque[bytes] = deque()
        self._most_waiting = most_waiting
        self._is_shared = is_shared
        self._descriptor: int | None = None

    @property
    def num_waiting(self) -> int:
        """How many lines have not been written."""
        return len(self._waiting)

    def append(self, text: str) -> OSError | None:
        """Write a line after those that wait; returns the error if they could not be written."""
        self._waiting.append(text.encode(errors="backslashreplace") + b"\n")
        while self._most_waiting is not None and len(self._waiting) > self._most_waiting:
            self._waiting.popleft()
            self.num_lost += 1
        return self.flush()

    def flush(self) -> OSError | None:
        """Write the lines that wait; returns the error if they could not be written."""
        try:
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self.close()
            return error
        return None

    def close(self) -> None:
        """Close the file; a line that is appended later opens it again."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        size, rest = os.fstat(self._descriptor).st_size, line
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            if len(rest) < len(line):
                self._undo(self._descriptor, size, rest)
            raise

    def _undo(self, descriptor: int, size: int, rest: bytes) -> None:
        """Remove a partial line from the file, or if that fails, keep its rest for the next write."""
        if not self._is_shared:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
                return
        self._waiting[0] = rest
