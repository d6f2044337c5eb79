"""Reads the curves of a run: all records of a metric where they are few, else mean, minimum and maximum of buckets."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distrain.errors import RunError
from distrain.messages import nearest, shown
from distrain.runs.curves.access import Part, Parts, open_parts
from distrain.runs.curves.buckets import BUCKET, Table, combine, level_for, mean
from distrain.runs.curves.layout import DamagedError
from distrain.runs.curves.parsing import BATCH_LEVEL
from distrain.runs.directory import RunDirectory

T = TypeVar("T")
_LARGEST = 2**63 - 1  # step


@dataclass(frozen=True)
class Curve:
    """One metric over the training, as buckets of consecutive records in their order.

    Step, epoch and time are those of the last record of a bucket; the time is NaN where the record has none. Mean,
    minimum and maximum are over the values that are finite, and NaN where none is; a mean is infinite or NaN, too,
    where the sum is too large for a float. In a bucket of one record they are its value: NaN for null in
    `metrics.jsonl`.
    """

    key: str
    step: NDArray[np.int64]
    epoch: NDArray[np.float64]
    time: NDArray[np.float64]  # seconds since 1970
    mean: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    count: NDArray[np.int64]  # records of the bucket
    num_not_finite: NDArray[np.int64]  # those of them whose value is not finite

    @property
    def is_exact(self) -> bool:
        """Whether every bucket is one record."""
        return bool((self.count == 1).all())

    def as_json(self) -> dict[str, Any]:
        """Return the curve for strict JSON, in which a number that is not finite is null, as in `metrics.jsonl`."""
        names = ("step", "epoch", "time", "mean", "min", "max", "count", "num_not_finite")
        return {**{name: _without_not_finite(getattr(self, name)) for name in names}, "is_exact": self.is_exact}


@dataclass(frozen=True)
class Curves:
    """Curves of a run by metric."""

    records: int  # of the whole run, in all lines that can be read
    step: int  # of the newest record; 0 where there is none
    curves: dict[str, Curve]


@dataclass(frozen=True)
class _Range:
    """The steps from `first` to `last`."""

    first: int
    last: int

    def select(self, part: Part, key: str) -> Table:
        """Return the records with a metric in this range, each as a bucket."""
        exact = part.exact(key)
        return exact[(exact["step"] >= self.first) & (exact["step"] <= self.last)]

    def contains(self, part: Part) -> bool:
        """Whether all records of a batch are in this range."""
        least, greatest = part.steps
        return self.first <= least and greatest <= self.last

    def overlaps(self, part: Part) -> bool:
        """Whether records of a batch may be in this range."""
        least, greatest = part.steps
        return least <= self.last and self.first <= greatest


def read_curves(
    run: RunDirectory,
    *,
    keys: Sequence[str] | None = None,
    points: int = 1000,
    first_step: int | None = None,
    last_step: int | None = None,
) -> Curves:
    """Return the curves of the metrics `keys`, or of all, between two steps (inclusive), in at most `points` buckets.

    A metric with at most `points` records in this range is returned exactly. The buckets of others have 2^n consecutive
    records of the file each, counted over all metrics, with at most `points` of them for each metric: they are the same
    while a run grows, except the last one. Raises `RunError` for a metric that the run does not have.
    """
    if points < 1:
        raise RunError(f"a curve has at least 1 point, not {points}")
    steps = _Range(
        -_LARGEST if first_step is None else max(first_step, -_LARGEST),
        _LARGEST if last_step is None else min(last_step, _LARGEST),
    )
    return _read(run, lambda parts: _draw(run, parts, keys, points, steps))


def list_keys(run: RunDirectory) -> list[str]:
    """Return the metrics of a run, in the order in which they appear in `metrics.jsonl`."""
    return _read(run, lambda parts: parts.keys)


def _read(run: RunDirectory, use: Callable[[Parts], T]) -> T:
    """Call `use` with the batches of the run, again where the store was changed meanwhile or is damaged."""
    for is_damaged in (False, False, True):
        try:
            with open_parts(run, is_damaged=is_damaged) as parts:
                return use(parts)
        except DamagedError:
            continue
    with open_parts(run, is_stored=False) as parts:
        return use(parts)


def _draw(run: RunDirectory, parts: Parts, keys: Sequence[str] | None, points: int, steps: _Range) -> Curves:
    for key in keys or ():
        if key not in parts.keys:
            raise RunError(f"run {run.path.name} has no metric {shown(key)}{nearest(key, parts.keys)}")
    inside = [part for part in parts.batches if steps.overlaps(part)]
    curves = {key: _draw_curve(inside, key, points, steps) for key in (parts.keys if keys is None else keys)}
    newest = parts.batches[-1].last_step if parts.batches else 0
    return Curves(sum(part.num_records for part in parts.batches), newest, curves)


def _draw_curve(parts: Sequence[Part], key: str, points: int, steps: _Range) -> Curve:
    having = [part for part in parts if part.count(key)]
    counts = [part.count(key) if steps.contains(part) else len(steps.select(part, key)) for part in having]
    having = [part for part, count in zip(having, counts, strict=True) if count]
    level = 0
    if sum(counts) > points:
        first, last = steps.select(having[0], key)["place"][0], steps.select(having[-1], key)["place"][-1]
        level = level_for(int(first), int(last), points)
    tables = [
        part.buckets(key, level) if steps.contains(part) else combine(steps.select(part, key), min(level, BATCH_LEVEL))
        for part in having
    ]
    joined = np.frombuffer(b"".join([table.tobytes() for table in tables]), BUCKET)  # concatenate is slow for rows
    return _to_curve(key, combine(joined, level))


def _to_curve(key: str, buckets: Table) -> Curve:
    names = ("step", "epoch", "time", "min", "max", "count", "num_not_finite")
    columns = {name: np.ascontiguousarray(buckets[name]) for name in names}
    return Curve(key=key, mean=mean(buckets), **columns)


def _without_not_finite(values: NDArray[Any]) -> list[Any]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
