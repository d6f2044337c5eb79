"""Combines the records of a metric into buckets, each of 2^n places of `metrics.jsonl`.

A place is a number that each record has, in the order of the file. Buckets begin at multiples of their size, so that
they stay the same while a run grows. Their sums are added along one binary tree, so that their bits do not depend on
which smaller buckets they are combined from.
"""

import numpy as np
from numpy.typing import NDArray

RECORD = np.dtype([("step", "<i8"), ("epoch", "<f8"), ("time", "<f8")])
# `place`, `step`, `epoch` and `time` are those of the last record. Sum, minimum and maximum are of the values that are
# finite; minimum and maximum are NaN where none is, and in a bucket of one record its value, whatever it is.
BUCKET = np.dtype(
    [
        ("place", "<i8"),
        *((name, RECORD[name]) for name in RECORD.names or ()),
        ("sum", "<f8"),
        ("min", "<f8"),
        ("max", "<f8"),
        ("count", "<i8"),
        ("num_not_finite", "<i8"),
    ]
)

Table = NDArray[np.void]  # rows of `RECORD` or `BUCKET`


def single(places: NDArray[np.int64], records: Table, values: NDArray[np.float64]) -> Table:
    """Return a bucket for each record of a metric, from its place, its row and its value."""
    found = np.empty(len(values), BUCKET)
    is_finite = np.isfinite(values)
    found["place"] = places
    for name in RECORD.names or ():
        found[name] = records[name]
    found["sum"] = np.where(is_finite, values, 0.0)
    found["min"] = found["max"] = values
    found["count"] = 1
    found["num_not_finite"] = ~is_finite
    return found


def combine(buckets: Table, level: int) -> Table:
    """Combine buckets of at most 2^level places, ordered by place, into buckets of 2^level."""
    if level == 0 or not len(buckets):
        return buckets
    with np.errstate(over="ignore", invalid="ignore"):
        sums, places = buckets["sum"], buckets["place"]
        for of_pairs in range(1, level + 1):
            starts = _starts(places >> of_pairs)
            sums, places = np.add.reduceat(sums, starts), places[starts]
    starts = _starts(buckets["place"] >> level)
    ends = np.append(starts[1:], len(buckets)) - 1
    combined: Table = buckets[ends]
    combined["sum"] = sums
    for name in ("count", "num_not_finite"):
        combined[name] = np.add.reduceat(buckets[name], starts)
    for name, extreme in (("min", np.fmin), ("max", np.fmax)):
        finite = np.where(np.isfinite(buckets[name]), buckets[name], np.nan)
        combined[name] = np.where(combined["count"] == 1, combined[name], extreme.reduceat(finite, starts))
    return combined


def mean(buckets: Table) -> NDArray[np.float64]:
    """Return the mean over the finite values of each bucket, never outside of their range; NaN where none is."""
    with np.errstate(invalid="ignore"):
        means = buckets["sum"] / (buckets["count"] - buckets["num_not_finite"])
    inside: NDArray[np.float64] = np.clip(means, buckets["min"], buckets["max"])  # rounding can leave it
    return np.where(buckets["count"] == 1, buckets["min"], inside)


def level_for(first_place: int, last_place: int, points: int) -> int:
    """Return the smallest level at which at most `points` buckets cover these places."""
    level = 0
    while (last_place >> level) - (first_place >> level) >= points:
        level += 1
    return level


def _starts(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each group of equal numbers begins."""
    is_start = np.ones(len(groups), bool)
    np.not_equal(groups[1:], groups[:-1], out=is_start[1:])
    return np.flatnonzero(is_start)
