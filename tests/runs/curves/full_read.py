"""What curves must be, computed from all records at once, without any code of the package's curves."""

import json
import math
from pathlib import Path
from typing import Any

from distrain.runs.directory import RunDirectory

BATCH = 4096  # places
BIG = 2**63 - 1

Row = tuple[int, dict[str, Any]]  # place and record


def line(step: int, **values: Any) -> str:
    """A line of metrics.jsonl; `train_loss` names the metric `train/loss`."""
    metrics = {key.replace("_", "/", 1): value for key, value in values.items()}
    return json.dumps({"step": step, "epoch": step / 100, "time": 1000 + step / 8, **metrics}) + "\n"


def expected(
    records: list[dict[str, Any]], key: str, *, points: int, first_step: int | None, last_step: int | None
) -> list[dict[str, Any]]:
    """The buckets of a metric, each as a dict of the fields of a curve."""
    rows = [(place, record) for place, record in enumerate(records) if key in record]
    low, high = -BIG if first_step is None else first_step, BIG if last_step is None else last_step
    rows = [row for row in rows if low <= row[1]["step"] <= high]
    size = 1
    while len(rows) > points and rows[-1][0] // size - rows[0][0] // size >= points:
        size *= 2
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[0] // size, []).append(row)
    return [_bucket(key, group) for group in groups.values()]


def _bucket(key: str, rows: list[Row]) -> dict[str, Any]:
    last, values = rows[-1][1], [record[key] for _, record in rows]
    finite = [value for value in values if math.isfinite(value)]
    bucket = {name: last.get(name, math.nan) for name in ("step", "epoch", "time")}
    bucket |= {"count": len(values), "num_not_finite": len(values) - len(finite), "finite": finite}
    if len(values) == 1:
        return bucket | dict.fromkeys(("mean", "min", "max"), values[0])
    if not finite:
        return bucket | dict.fromkeys(("mean", "min", "max"), math.nan)
    return bucket | {"mean": math.fsum(finite) / len(finite), "min": min(finite), "max": max(finite)}


def check(found: Any, wanted: list[dict[str, Any]]) -> None:
    """A curve has exactly these buckets; only the mean of several records may differ, in its last digits."""
    names = ("step", "epoch", "time", "min", "max", "count", "num_not_finite")
    for name in names:
        assert list(map(repr, getattr(found, name).tolist())) == [
            repr(type(value)(bucket[name])) for bucket, value in zip(wanted, getattr(found, name).tolist(), strict=True)
        ], name
    for bucket, mean in zip(wanted, found.mean.tolist(), strict=True):
        if bucket["count"] == 1:
            assert repr(mean) == repr(float(bucket["mean"]))
        else:
            is_close = math.isclose(mean, bucket["mean"], rel_tol=1e-12, abs_tol=1e-12)
            assert is_close if bucket["finite"] else math.isnan(mean)
            assert not mean < bucket["min"] and not mean > bucket["max"]


def store_files(run: RunDirectory) -> list[Path]:
    return [run.curves / "index", run.curves / "columns"]
