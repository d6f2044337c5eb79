"""Keeps the whole batches of `metrics.jsonl` in two files, `index` and `columns`, and reads them back.

Both are written from the front to the back, and a batch counts from the moment when its entry in the index is whole. So
nothing that was cut off, damaged, or written by two processes at once is believed, and the batches before it stay.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import xxhash

from distrain.runs.curves.layout import HEADER_BYTES, MAGIC, DamagedError, StoredBatch, lay_out
from distrain.runs.curves.parsing import Batch

INDEX, COLUMNS = "index", "columns"
_PIECE = 1 << 20
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Store:
    """The batches that are stored in a folder, whose files are open until `close`."""

    index: int
    columns: int
    inode: int = 0  # of the file that was read last
    batches: list[StoredBatch] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # the metrics, in the order in which they appear

    @classmethod
    def open(cls, folder: Path, *, is_writable: bool) -> Self:
        """Read the index of a folder; a writable one is created where it is missing. Raises `OSError`."""
        flags = _FLAGS | (os.O_RDWR | os.O_CREAT if is_writable else os.O_RDONLY)
        index = os.open(folder / INDEX, flags, 0o666)
        try:
            store = cls(index, os.open(folder / COLUMNS, flags, 0o666))
        except OSError:
            os.close(index)
            raise
        store._load()
        return store

    def close(self) -> None:
        """Close the files."""
        os.close(self.index)
        os.close(self.columns)

    @property
    def text_end(self) -> int:
        """How much of `metrics.jsonl` is stored, in bytes."""
        return int(self.batches[-1].entry["text_end"]) if self.batches else 0

    def is_of(self, file: int) -> bool:
        """Whether the file is the one that was read, and still has the newest batch where it was.

        A history that a resume has rewritten is a new file, or was cut off and has grown again with other times.
        """
        return os.fstat(file).st_ino == self.inode and all(_is_read_from(file, each) for each in self.batches[-1:])

    def keep_valid(self, file: int) -> None:
        """Drop the batches whose text is not in the file, and what is damaged, from the files of the store."""
        if not self.is_of(file):
            self.drop_from(next((n for n, each in enumerate(self.batches) if not _is_read_from(file, each)), None))
        self.inode = os.fstat(file).st_ino
        os.ftruncate(self.index, self._index_end)
        os.ftruncate(self.columns, self._data_end)
        _write(self.index, MAGIC + self.inode.to_bytes(8, "little"), 0)

    def drop_from(self, number: int | None) -> None:
        """Forget the batches from this one on."""
        if number is not None:
            del self.batches[number:]
            del self.keys[self.batches[-1].num_keys if self.batches else 0 :]

    def append(self, batch: Batch) -> None:
        """Store the batch that follows the last one; raises `OSError` where it cannot be written."""
        entry, data = lay_out(batch, self.batches[-1] if self.batches else None, self.keys)
        _write(self.columns, data, self._data_end)
        _write(self.index, entry, self._index_end)
        self._add(memoryview(entry))

    @property
    def _index_end(self) -> int:
        return self.batches[-1].index_end if self.batches else HEADER_BYTES

    @property
    def _data_end(self) -> int:
        return int(self.batches[-1].entry["data_end"]) if self.batches else 0

    def _load(self) -> None:
        index = os.pread(self.index, os.fstat(self.index).st_size, 0)
        if index.startswith(MAGIC) and len(index) >= HEADER_BYTES:
            self.inode = int.from_bytes(index[len(MAGIC) : HEADER_BYTES], "little")
            text = memoryview(index)
            with suppress(DamagedError):
                while len(text) > self._index_end:
                    self._add(text[self._index_end :])

    def _add(self, text: memoryview) -> None:
        before = self.batches[-1] if self.batches else None
        self.batches.append(StoredBatch.parse(text, before, self.keys, self.columns))


def _is_read_from(file: int, batch: StoredBatch) -> bool:
    """Whether the text of a batch is still in the file."""
    position, end, digest = int(batch.entry["text_start"]), int(batch.entry["text_end"]), xxhash.xxh3_128()
    while piece := os.pread(file, min(_PIECE, end - position), position):
        digest.update(piece)
        position += len(piece)
    return bool(digest.digest() == batch.entry["text_digest"].tobytes())


def _write(file: int, data: bytes, position: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, position)
        rest, position = rest[written:], position + written
