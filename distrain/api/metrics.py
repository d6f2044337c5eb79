"""Gives the metrics of a run as columns."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distrain.messages import counted, nearest
from distrain.runs.curves import Curve, read_curves
from distrain.runs.directory import RunDirectory

if TYPE_CHECKING:
    import pandas as pd

_ALL = 2**62  # points of a curve: every record
_PLACE = ("step", "epoch", "time")


class Metrics(Mapping[str, NDArray[Any]]):
    """What a run has recorded, as a table: a column for each metric, a row for each recorded step.

    `metrics["train/loss"]` is float64 [rows], NaN at the steps at which it was not recorded; `step` is int64 [rows],
    `epoch` float64 and `time` float64 in seconds since 1970. `curve` gives one metric without those gaps.
    """

    def __init__(self, curves: Mapping[str, Curve]) -> None:
        self._curves = dict(curves)
        steps = [curve.step for curve in curves.values()]
        self._step = np.unique(np.concatenate(steps)) if steps else np.empty(0, np.int64)
        self._columns: dict[str, NDArray[Any]] = {"step": self._step}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            self._columns[name] = self._place(name) if name in _PLACE else self._align(self._find(name), "mean")
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*_PLACE, *self._curves))

    def __len__(self) -> int:
        return len(_PLACE) + len(self._curves)

    def __repr__(self) -> str:
        return f"Metrics of {counted(len(self._step), 'step')}: {', '.join(self._curves) or 'none yet'}"

    def curve(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the steps at which a metric was recorded, and its values: both [records]."""
        curve = self._find(name)
        return curve.step, curve.mean

    def to_pandas(self) -> "pd.DataFrame":
        """Return the table as a DataFrame whose index is the step; pandas must be installed."""
        import pandas as pd

        columns = {name: self[name] for name in self if name != "step"}
        return pd.DataFrame(columns, index=pd.Index(self._step, name="step"))

    def _find(self, name: str) -> Curve:
        if name not in self._curves:
            raise KeyError(f"no metric {name}{nearest(name, self)}")
        return self._curves[name]

    def _place(self, name: str) -> NDArray[np.float64]:
        column = np.full(len(self._step), np.nan)
        for curve in self._curves.values():
            column[np.searchsorted(self._step, curve.step)] = getattr(curve, name)
        return column

    def _align(self, curve: Curve, name: str) -> NDArray[np.float64]:
        column = np.full(len(self._step), np.nan)
        column[np.searchsorted(self._step, curve.step)] = getattr(curve, name)
        return column


def read_metrics(run: RunDirectory) -> Metrics:
    """Return all that a run has recorded."""
    return Metrics(read_curves(run, points=_ALL).curves)
