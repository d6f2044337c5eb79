"""Defines how a batch is stored: its data in the file `columns`, and an entry in the file `index` that describes it.

An entry has the digests of the text that the batch was read from, of each part of its data, and of itself together with
the entry before it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import xxhash

from distrain.runs.curves.buckets import BUCKET, RECORD, Table, combine, single
from distrain.runs.curves.parsing import BATCH_LEVEL, PLACES, Batch

MAGIC = b"distrain curves 1\n"
HEADER_BYTES = len(MAGIC) + 8  # of the index; with the inode of metrics.jsonl
STORED_LEVEL = 6
_FEW = PLACES >> STORED_LEVEL  # records of a metric in a batch: where there are no more, each is a bucket
_ENTRY = np.dtype(
    [
        ("size", "<i8"),  # of the entry with its summaries and names, in bytes
        ("text_start", "<i8"),  # in metrics.jsonl
        ("text_end", "<i8"),
        ("text_digest", "V16"),
        ("num_records", "<i8"),
        ("min_step", "<i8"),
        ("max_step", "<i8"),
        ("last_step", "<i8"),
        ("data_start", "<i8"),  # in `columns`; the data begins with the rows of the records
        ("data_end", "<i8"),
        ("records_digest", "<u8"),
        ("num_summaries", "<i8"),
    ]
)
_SUMMARY = np.dtype(
    [
        ("key", "<i8"),  # number of the metric, in the order of the names
        ("buckets", "<i8"),  # where they begin in `columns`
        ("num_buckets", "<i8"),
        ("buckets_digest", "<u8"),
        ("values", "<i8"),  # where values and places begin; -1 where each of the buckets is one record
        ("values_digest", "<u8"),
        ("whole", BUCKET),  # all records of the batch
    ]
)
_DIGEST_BYTES = 16  # in front of an entry
_BYTES_A_VALUE = 10


class DamagedError(Exception):
    """The data is not what the index describes."""


@dataclass(frozen=True)
class StoredBatch:
    """A batch in the store, with what `Batch` has; its methods raise `DamagedError`."""

    number: int
    num_records: int
    steps: tuple[int, int]  # the smallest and the largest one
    last_step: int
    num_keys: int  # of the metrics so far
    index_end: int  # behind its entry in the index
    digest: bytes  # of the entry and those before it
    entry: np.void
    summaries: Table
    rows: Mapping[str, int]  # of the summaries, by metric
    counts: Mapping[str, int]  # of records, by metric
    columns: int  # the open file

    @classmethod
    def parse(cls, text: memoryview, before: Self | None, keys: list[str], columns: int) -> Self:
        """Read the entry with which a text begins, and add the names of its new metrics to `keys`.

        Raises `DamagedError` where it is not whole, or does not belong behind the entry `before` it.
        """
        if len(text) < _DIGEST_BYTES + _ENTRY.itemsize:
            raise DamagedError
        expected, text = text[:_DIGEST_BYTES], text[_DIGEST_BYTES:]
        entry = np.frombuffer(text, _ENTRY, 1)[0]
        text = text[: max(0, int(entry["size"]))]
        digest = _digest_of(before, text)
        if expected != digest:
            raise DamagedError
        count = int(entry["num_summaries"])
        summaries = np.frombuffer(text, _SUMMARY, count, _ENTRY.itemsize)
        keys += json.loads(bytes(text[_ENTRY.itemsize + summaries.nbytes :]))
        names = [keys[key] for key in summaries["key"].tolist()]
        rows = {name: row for row, name in enumerate(names)}
        counts = dict(zip(names, summaries["whole"]["count"].tolist(), strict=True))
        return cls(
            number=0 if before is None else before.number + 1,
            num_records=int(entry["num_records"]),
            steps=(int(entry["min_step"]), int(entry["max_step"])),
            last_step=int(entry["last_step"]),
            num_keys=len(keys),
            index_end=(HEADER_BYTES if before is None else before.index_end) + _DIGEST_BYTES + len(text),
            digest=digest,
            entry=entry,
            summaries=summaries,
            rows=rows,
            counts=counts,
            columns=columns,
        )

    def count(self, key: str) -> int:
        """Return the number of records that have a metric."""
        return self.counts.get(key, 0)

    def exact(self, key: str) -> Table:
        """Return a bucket for each record with a metric that the batch has."""
        summary = self.summaries[self.rows[key]]
        if summary["values"] < 0:
            return self._read_buckets(summary)
        count = self.count(key)
        data = self._read(summary["values"], count * _BYTES_A_VALUE, summary["values_digest"])
        values, places = np.frombuffer(data, "<f8", count), np.frombuffer(data, "<u2", count, 8 * count)
        size = self.num_records * RECORD.itemsize
        records = np.frombuffer(self._read(self.entry["data_start"], size, self.entry["records_digest"]), RECORD)
        return single(self.number * PLACES + places.astype(np.int64), records[places], values)

    def buckets(self, key: str, level: int) -> Table:
        """Return buckets of at most 2^level places."""
        row = self.rows[key]
        if level >= BATCH_LEVEL:
            return self.summaries["whole"][row : row + 1]
        return self._read_buckets(self.summaries[row]) if level >= STORED_LEVEL else self.exact(key)

    def _read_buckets(self, summary: np.void) -> Table:
        size = int(summary["num_buckets"]) * BUCKET.itemsize
        return np.frombuffer(self._read(summary["buckets"], size, summary["buckets_digest"]), BUCKET)

    def _read(self, start: Any, size: int, digest: Any) -> bytes:
        data = os.pread(self.columns, size, int(start))
        if len(data) != size or xxhash.xxh3_64_intdigest(data) != int(digest):
            raise DamagedError
        return data


def lay_out(batch: Batch, before: StoredBatch | None, keys: list[str]) -> tuple[bytes, bytes]:
    """Return the entry and the data of the batch that follows the one `before`; `keys` are the metrics so far."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys([*keys, *batch.columns]))}
    names = json.dumps(list(numbers)[len(keys) :]).encode()
    data = _Data(0 if before is None else int(before.entry["data_end"]))
    summaries, entry = np.zeros(len(batch.columns), _SUMMARY), np.zeros(1, _ENTRY)
    entry["size"] = _ENTRY.itemsize + summaries.nbytes + len(names)
    entry["text_start"], entry["text_end"], entry["text_digest"] = batch.start, batch.end, np.void(batch.digest)
    entry["num_records"], entry["last_step"] = batch.num_records, batch.last_step
    entry["min_step"], entry["max_step"] = batch.steps
    entry["data_start"], entry["records_digest"] = data.add(batch.records.tobytes())
    for summary, key in zip(summaries, batch.columns, strict=True):
        exact = batch.exact(key)
        buckets = combine(exact, STORED_LEVEL) if len(exact) > _FEW else exact
        summary["key"], summary["num_buckets"], summary["values"] = numbers[key], len(buckets), -1
        summary["buckets"], summary["buckets_digest"] = data.add(buckets.tobytes())
        summary["whole"] = combine(buckets, BATCH_LEVEL)[0]
    for summary, (places, values) in zip(summaries, batch.columns.values(), strict=True):
        if len(values) > _FEW:
            text = values.astype("<f8").tobytes() + places.astype("<u2").tobytes()
            summary["values"], summary["values_digest"] = data.add(text)
    entry["data_end"], entry["num_summaries"] = data.end, len(summaries)
    text = entry.tobytes() + summaries.tobytes() + names
    return _digest_of(before, text) + text, b"".join(data.parts)


@dataclass
class _Data:
    """The data of a batch, part by part."""

    end: int
    parts: list[bytes] = field(default_factory=list)

    def add(self, part: bytes) -> tuple[int, int]:
        """Add a part, and return where it begins and its digest."""
        start = self.end
        self.parts.append(part)
        self.end += len(part)
        return start, xxhash.xxh3_64_intdigest(part)


def _digest_of(before: StoredBatch | None, text: bytes | memoryview) -> bytes:
    digest = xxhash.xxh3_128(b"" if before is None else before.digest)
    digest.update(text)
    return digest.digest()
