"""Keeps a journal of a packed dataset while it is written, so that a killed process loses very little work.

The folder NAME.tmp beside the pack has `pack/`, which is renamed to the pack when it is complete; `rows/`, with the
index rows of each shard; and `journal.jsonl`, with a line for each part of a shard that is on disk. Data is synced
before its line is written; data without a line is written again.
"""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict

from distrain.config.data import Split
from distrain.data.packing.encode import Stored
from distrain.data.packing.format import INDEX, Form, range_digest
from distrain.errors import DataError
from distrain.system import locks
from distrain.system.files import sync
from distrain.system.filesystem import name_path

LOCK = "lock"  # used where the file system has no flock
SAVED_EVERY_BYTES = 64 * 2**20  # at most this much is lost in a kill
SAVED_EVERY_S = 15.0  # the same in time, for small images, which are slow for their bytes


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PackSettings(_Part):
    """The settings of a pack, which cannot be resumed with other ones."""

    form: Form
    shard_bytes: int
    source: str
    path: str | None


class SkippedSample(_Part):
    """A sample of the source that was skipped: its index, and why."""

    index: int
    reason: str


class Record(_Part):
    """The part of a shard that is on disk: `count` samples from `first` on, including skipped ones."""

    split: Split
    number: int
    file: str
    offset: int
    bytes: int
    digest: str
    rows_digest: str
    first: int
    count: int
    mark: str  # a digest of these samples in the source
    num_changed: int
    skipped: tuple[SkippedSample, ...]
    is_closed: bool

    @property
    def images(self) -> int:
        """The number of images that are stored."""
        return self.count - len(self.skipped)


class Samples(Protocol):
    """The samples of a split, as a journal sees them."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def mark(self, first: int, last: int) -> str:
        """Return a digest that changes when the samples from `first` up to, not including, `last` change."""
        ...


class Journal:
    """The journal of one pack, locked by this process."""

    def __init__(self, folder: Path, settings: PackSettings, records: dict[tuple[Split, int], Record]) -> None:
        self.folder = folder
        self.settings = settings
        self.data = folder / "pack"
        self._records = records
        for below in (self.data, folder / "rows"):
            below.mkdir(exist_ok=True)

    def of_split(self, split: Split) -> list[Record]:
        """Return the records of a split's shards, in order."""
        return [self._records[key] for key in sorted(self._records) if key[0] == split]

    def rows(self, record: Record) -> bytes:
        """Return the index rows of a shard."""
        with self.rows_path(record.split, record.number).open("rb") as file:
            return file.read(record.images * INDEX.itemsize)

    def rows_path(self, split: Split, number: int) -> Path:
        """Return the file of a shard's index rows."""
        return self.folder / "rows" / f"{split}-{number:05d}"

    def add(self, record: Record) -> None:
        """Write the record of a shard, and sync it to disk."""
        self._records[record.split, record.number] = record
        descriptor = os.open(self.folder / "journal.jsonl", os.O_WRONLY | os.O_APPEND)
        try:
            write_all(descriptor, _line(record))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def keep(self, kept: dict[Split, list[Record]]) -> None:
        """Keep only these records, and delete all files that do not belong to them."""
        self._records = {(record.split, record.number): record for found in kept.values() for record in found}
        lines = map(_line, (self.settings, *self._records.values()))
        write_synced(self.folder / "journal.jsonl", b"".join(lines))
        files = {record.file for record in self._records.values()}
        rows = {self.rows_path(*key).name for key in self._records}
        for path in (*self.data.iterdir(), *(self.folder / "rows").iterdir()):
            if path.name not in (files if path.parent == self.data else rows):
                path.unlink()

    def check(self, split: Split, samples: Samples, *, skips: bool, advance: Callable[[int], None]) -> Iterator[Record]:
        """Yield the valid records of a split: neither their samples nor their files have changed."""
        first = 0
        for number, record in enumerate(self.of_split(split)):
            last = record.first + record.count
            if (record.number, record.first) != (number, first) or last > len(samples):
                return
            if record.mark != samples.mark(first, last) or (record.skipped and not skips):
                return
            try:
                digest = range_digest(self.data / record.file, record.offset, record.bytes, advance=advance)
                rows = self.rows(record)
            except OSError:
                return
            if (digest.hexdigest(), xxhash.xxh3_128(rows).hexdigest()) != (record.digest, record.rows_digest):
                return
            yield record
            if not record.is_closed:
                return
            first = last


@contextmanager
def open_journal(folder: Path, settings: PackSettings, *, starts_over: bool) -> Iterator[Journal]:
    """Start a pack in `folder`, or resume one; raises `DataError` where its settings differ or it is being written."""
    is_new = not folder.exists()
    folder.mkdir(exist_ok=True)
    with _locked(folder):
        content = [path for path in folder.iterdir() if not path.name.startswith(f"{LOCK}.")]
        if not is_new and content and not (folder / "journal.jsonl").exists():
            raise DataError(f"{folder} exists and is not an unfinished pack; move it away")
        if starts_over:
            for path in content:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not (folder / "journal.jsonl").exists():
            write_synced(folder / "journal.jsonl", _line(settings))
        yield Journal(folder, *_read(folder, settings))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder; raises `DataError` where another process has locked it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with ExitStack() as locks_held:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in {*locks.NO_LOCKS, errno.EWOULDBLOCK}:
                    raise name_path(error, folder) from None
                if error.errno == errno.EWOULDBLOCK:
                    raise locks.HeldError from None
                locks_held.enter_context(locks.hold_by_files(folder / LOCK))
            yield
    except locks.HeldError:
        raise DataError(f"another process is packing into {folder}; wait for it, or stop it") from None
    finally:
        os.close(descriptor)


def _read(folder: Path, settings: PackSettings) -> tuple[PackSettings, dict[tuple[Split, int], Record]]:
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")[:-1]  # a last line without a newline is incomplete
    try:
        found = PackSettings.model_validate(json.loads(lines[0]))
        records = [Record.model_validate(json.loads(line)) for line in lines[1:]]
    except (ValueError, IndexError):  # invalid JSON, or refused by pydantic
        raise DataError(f"{folder}/journal.jsonl cannot be read; start again with --force") from None
    now, then = _by_key(settings), _by_key(found)
    if key := next((key for key in now if now[key] != then[key]), None):
        raise DataError(
            f"{folder} was started with {key}={then[key]}, but now it is {key}={now[key]}; use the same options, or "
            f"start again with --force"
        )
    return found, {(record.split, record.number): record for record in records}


def _line(part: _Part) -> bytes:
    """Return a line of the journal; not with pydantic's JSON, which does not accept names that are not UTF-8."""
    return f"{json.dumps(part.model_dump())}\n".encode()


def _by_key(settings: PackSettings) -> dict[str, object]:
    content = settings.model_dump(exclude={"shard_bytes"})  # an estimate: the first one is used
    return {**content.pop("form"), **content}


class ShardWriter:
    """Writes a shard, and resumes it where it has a record."""

    def __init__(
        self, journal: Journal, samples: Samples, *, split: Split, number: int, file: str, offset: int, first: int
    ) -> None:
        self._journal, self._samples = journal, samples
        self._split, self._file, self._first = split, file, first
        self.number, self.offset = number, offset
        self.bytes = self.count = self._num_changed = self._unsaved = 0
        self._saved_at = time.monotonic()
        self._skipped: list[SkippedSample] = []
        self._rows = bytearray()
        self._digest = xxhash.xxh3_128()
        if (record := next((r for r in journal.of_split(split) if r.number == number), None)) is not None:
            self.bytes, self.count, self._num_changed = record.bytes, record.count, record.num_changed
            self._skipped = list(record.skipped)
            self._rows += journal.rows(record)
            self._digest = range_digest(journal.data / file, offset, record.bytes, advance=lambda _: None)
        self._descriptor = os.open(journal.data / file, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._descriptor, offset + self.bytes)
        os.lseek(self._descriptor, offset + self.bytes, os.SEEK_SET)

    def add(self, stored: Stored, *, source_bytes: int) -> None:
        """Write the next image."""
        write_all(self._descriptor, stored.content.data)
        self._digest.update(stored.content.data)
        channels, height, width = stored.shape
        length = len(stored.content)
        row = (self.offset + self.bytes, length, source_bytes, self.number, height, width, channels)
        self._rows += np.array(row, INDEX).tobytes()
        self.bytes += length
        self.count += 1
        self._num_changed += stored.is_changed
        self._unsaved += length
        if self._unsaved >= SAVED_EVERY_BYTES or time.monotonic() - self._saved_at > SAVED_EVERY_S:
            self.save()

    def skip(self, bad: SkippedSample) -> None:
        """Skip the next sample."""
        self._skipped.append(bad)
        self.count += 1

    def save(self, *, is_closed: bool = False) -> None:
        """Sync the shard to disk, and write its record."""
        os.fsync(self._descriptor)
        write_synced(self._journal.rows_path(self._split, self.number), bytes(self._rows))
        self._unsaved, self._saved_at = 0, time.monotonic()
        self._journal.add(
            Record(
                split=self._split,
                number=self.number,
                file=self._file,
                offset=self.offset,
                bytes=self.bytes,
                digest=self._digest.hexdigest(),
                rows_digest=xxhash.xxh3_128(self._rows).hexdigest(),
                first=self._first,
                count=self.count,
                mark=self._samples.mark(self._first, self._first + self.count),
                num_changed=self._num_changed,
                skipped=tuple(self._skipped),
                is_closed=is_closed,
            )
        )

    def close(self) -> None:
        """Close the file; unsaved images are written again after a resume."""
        os.close(self._descriptor)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all bytes; a system call may write fewer at a time."""
    view = memoryview(content).cast("B")
    while len(view):
        view = view[os.write(descriptor, view) :]


def write_synced(path: Path, content: bytes) -> None:
    """Replace a file atomically, and sync it to disk."""
    temporary = path.with_name(f"{path.name}.draft")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync(path.parent)


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk is full."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
