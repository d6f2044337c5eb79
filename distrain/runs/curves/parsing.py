"""Reads `metrics.jsonl` in batches of records as columns, in bounded memory whatever the file contains."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from distrain.runs.curves.buckets import RECORD, Table, combine, single

BATCH_LEVEL = 12
PLACES = 1 << BATCH_LEVEL  # of a batch: it has this many records, or fewer with `MAX_VALUES` values
MAX_VALUES = 1 << 22
MAX_KEYS = 8192  # metrics of a run: later ones are left out
MAX_LINE = 1 << 20  # bytes; a longer line is damaged
_MAX_KEY = 500  # characters
_BLOCK = 1 << 20  # bytes that are read at once
_LARGEST_STEP = 2**63 - 1
_NUMBERS = {int, float, type(None)}  # the last is how strict JSON has a number that is not finite

Values = tuple[NDArray[np.uint16], NDArray[np.float64]]  # of a metric: places within the batch, and values
_Group = tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.float64]]  # keys, numbers of records, a row for each


@dataclass(frozen=True)
class Batch:
    """Records of consecutive lines as columns; only the last one of a file may not be whole yet."""

    number: int
    start: int  # where its text begins in the file, in bytes
    end: int  # behind the line of its last record, or behind all that was read
    digest: bytes  # of this text
    records: Table  # rows of `RECORD`
    columns: dict[str, Values]  # by metric
    is_whole: bool

    @property
    def num_records(self) -> int:
        """The number of records."""
        return len(self.records)

    @property
    def steps(self) -> tuple[int, int]:
        """The smallest and the largest step."""
        return int(self.records["step"].min()), int(self.records["step"].max())

    @property
    def last_step(self) -> int:
        """The step of the last record."""
        return int(self.records["step"][-1])

    def count(self, key: str) -> int:
        """Return the number of records that have a metric."""
        return len(self.columns[key][0]) if key in self.columns else 0

    def exact(self, key: str) -> Table:
        """Return a bucket for each record with a metric that the batch has."""
        places, values = self.columns[key]
        return single(self.number * PLACES + places.astype(np.int64), self.records[places], values)

    def buckets(self, key: str, level: int) -> Table:
        """Return buckets of at most 2^level places."""
        return combine(self.exact(key), min(level, BATCH_LEVEL))


def read_batches(file: int, *, start: int = 0, number: int = 0, keys: Sequence[str] = ()) -> Iterator[Batch]:
    """Yield the batches of an open file from the byte `start` on.

    `number` is that of the first one, and `keys` are the metrics of those before it. Lines that are damaged, or not
    finished yet, are left out. What a batch contains depends on nothing but the text.
    """
    pending, known = _Pending(number, start), dict.fromkeys(keys)
    for text, is_readable in _read_blocks(file, start):
        if not is_readable:
            pending.add(text, [], known)
            continue
        lines = text.split(b"\n")[:-1]
        records = [_parse(line) for line in lines]
        done = begin = 0
        while done < len(lines):
            stop = pending.find_end(records, done)
            size = sum(map(len, lines[done:stop])) + stop - done
            pending.add(text[begin : begin + size], [each for each in records[done:stop] if each is not None], known)
            done, begin = stop, begin + size
            if pending.is_whole:
                yield pending.finish()
                pending = _Pending(pending.number + 1, pending.end)
    if pending.num_records:
        yield pending.finish()


@dataclass
class _Pending:
    """A batch that is being read."""

    number: int
    start: int
    end: int = field(init=False)
    num_records: int = 0
    num_values: int = 0
    digest: Any = field(default_factory=xxhash.xxh3_128)
    rows: list[Table] = field(default_factory=list)
    pieces: dict[str, list[Values]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.end = self.start

    @property
    def is_whole(self) -> bool:
        return self.num_records >= PLACES or self.num_values >= MAX_VALUES

    def find_end(self, records: Sequence[dict[str, Any] | None], start: int) -> int:
        """Return the number behind the record that completes the batch, or behind the last one."""
        num_records, num_values = self.num_records, self.num_values
        for number in range(start, len(records)):
            if (record := records[number]) is not None:
                num_records += 1
                num_values += len(record)
                if num_records >= PLACES or num_values >= MAX_VALUES:
                    return number + 1
        return len(records)

    def add(self, text: bytes, records: list[dict[str, Any]], known: dict[str, None]) -> None:
        """Add the records of a text; metrics that are new are added to the `known` ones."""
        self.digest.update(text)
        self.end += len(text)
        if not records:
            return
        self.num_values += sum(map(len, records))
        rows = np.empty(len(records), RECORD)
        rows["step"] = [record["step"] for record in records]
        rows["epoch"] = rows["time"] = np.nan
        for keys, numbers, matrix in _to_columns(records):
            for key, values in zip(keys, matrix.T, strict=True):
                if key in {"epoch", "time"}:
                    rows[key][numbers] = values
                elif is_metric(key) and (key in known or len(known) < MAX_KEYS):
                    known[key] = None
                    places = (numbers + self.num_records).astype(np.uint16)
                    self.pieces.setdefault(key, []).append((places, values))
        self.rows.append(rows)
        self.num_records += len(records)

    def finish(self) -> Batch:
        columns = {key: _join(pieces) for key, pieces in self.pieces.items()}
        digest, rows = self.digest.digest(), np.concatenate(self.rows)
        return Batch(self.number, self.start, self.end, digest, rows, columns, self.is_whole)


def is_metric(key: str) -> bool:
    """Whether a key of a record names a metric."""
    return "/" in key and len(key) <= _MAX_KEY


def _read_blocks(file: int, position: int) -> Iterator[tuple[bytes, bool]]:
    """Yield the text in blocks of whole lines, and whether these can be read: the parts of a long line cannot."""
    rest, is_skipping = b"", False
    while piece := os.pread(file, _BLOCK, position):
        position += len(piece)
        if is_skipping:
            end = piece.find(b"\n") + 1 or len(piece)
            is_skipping = not piece.endswith(b"\n", 0, end)
            yield piece[:end], False
            piece = piece[end:]
        text = rest + piece
        end = text.rfind(b"\n") + 1
        rest = text[end:]
        if end:
            yield text[:end], True
        if len(rest) > MAX_LINE:
            yield rest, False
            rest, is_skipping = b"", True


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line; None where the line is damaged."""
    try:
        record = _load(line) if len(line) <= MAX_LINE else None
        is_record = type(record) is dict and type(record["step"]) is int and abs(record["step"]) <= _LARGEST_STEP
    except (ValueError, LookupError, RecursionError):
        return None
    return record if is_record else None


def _load(line: bytes) -> Any:
    """Return what `json` reads, but faster; raises `ValueError`."""
    try:
        return orjson.loads(line)
    except ValueError:  # NaN, larger integers, text that is not UTF-8
        return json.loads(line.decode(errors="replace"))


def _join(pieces: Sequence[Values]) -> Values:
    """Join the values of a metric, in the order of their places."""
    places = np.concatenate([places for places, _ in pieces])
    values = np.concatenate([values for _, values in pieces])
    if len(pieces) == 1:
        return places, values
    order = np.argsort(places)
    return places[order], values[order]


def _to_columns(records: Sequence[dict[str, Any]]) -> list[_Group]:
    """Return the values of records as floats, without those that are not numbers."""
    with suppress(TypeError, OverflowError):
        return _group(records)
    return _group([{k: _to_float(v) for k, v in each.items() if type(v) in _NUMBERS} for each in records])


def _group(records: Sequence[dict[str, Any]]) -> list[_Group]:
    """Return the values of the records that have the same keys; raises `TypeError` where one is not a number."""
    numbers_by_keys: dict[tuple[str, ...], list[int]] = {}
    for number, record in enumerate(records):
        numbers_by_keys.setdefault(tuple(record), []).append(number)
    groups = []
    for keys, numbers in numbers_by_keys.items():
        values = list(chain.from_iterable([records[number].values() for number in numbers]))
        if not set(map(type, values)) <= _NUMBERS:
            raise TypeError
        groups.append((keys, np.array(numbers), np.array(values, np.float64).reshape(len(numbers), len(keys))))
    return groups


def _to_float(value: float | None) -> float:
    """Return a number as a float, and one that is too large for it as an infinite one."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.copysign(math.inf, 1 if value is None or value > 0 else -1)
