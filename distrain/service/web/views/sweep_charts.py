"""Computes what a sweep is drawn from: parallel coordinates and a contour as SVG, which needs no script to be seen.

Both are `SIZE` units high; y points down.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from distrain.messages import counted
from distrain.service.sweeps.parameters import Parameter, as_text
from distrain.service.sweeps.results import SweepResult
from distrain.service.sweeps.trial import Trial
from distrain.service.web.report.charts import SIZE, Tick, format_number

WIDTH = 2.2 * SIZE  # of parallel coordinates
_CELLS = 24  # of a contour, along a range
_MIN_TRIALS = 3  # from which on a contour is drawn
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # places of the ticks of a range


@dataclass(frozen=True)
class Axis:
    """A parameter or the metric, from 0 to 1."""

    title: str
    ticks: tuple[Tick, ...]
    place: Callable[[object], float | None]  # of a value; None where it has no place


@dataclass(frozen=True)
class TrialLine:
    """A trial in parallel coordinates: a path, its rank from 0 (the best) to 1, and what it is as text."""

    path: str
    rank: float
    title: str
    is_best: bool


@dataclass(frozen=True)
class Coordinates:
    """Parallel coordinates: an axis for each parameter, and the metric as the last one."""

    axes: tuple[Axis, ...]
    lines: tuple[TrialLine, ...]
    label: str

    @property
    def spacing(self) -> float:
        """The distance of two axes."""
        return WIDTH / max(1, len(self.axes) - 1)


@dataclass(frozen=True)
class Cell:
    """A cell of a contour, in units; `share` is the interpolated value from 0 (the worst) to 1 (the best)."""

    x: float
    y: float
    width: float
    height: float
    share: float


@dataclass(frozen=True)
class Contour:
    """The metric over two parameters: interpolated between the trials, which are points."""

    x: Axis
    y: Axis
    cells: tuple[Cell, ...]
    points: str  # a path of dots
    best: str
    label: str


def draw_coordinates(result: SweepResult, parameters: Sequence[Parameter]) -> Coordinates | None:
    """Return the parallel coordinates of the trials that have a value; None where there are none."""
    valued = [trial for trial in result.trials if trial.value is not None]
    if not valued:
        return None
    axes = (*map(_parameter_axis, parameters), _metric_axis(result, valued))
    order = sorted(valued, key=lambda trial: (-result.sign * (trial.value or 0.0), trial.number))
    ranks = {trial.number: place / max(1, len(order) - 1) for place, trial in enumerate(order)}
    best = result.best
    lines = tuple(
        TrialLine(
            _path(axes, [*(trial.params.get(each.key) for each in parameters), trial.value]),
            round(ranks[trial.number], 3),
            describe_trial(trial, result.metric),
            is_best=best is not None and trial.number == best.number,
        )
        for trial in reversed(order)  # the best is drawn last
    )
    return Coordinates(axes, lines, f"{counted(len(lines), 'trial')} over {', '.join(axis.title for axis in axes)}")


def draw_contour(result: SweepResult, parameters: Sequence[Parameter]) -> Contour | None:
    """Return the metric over the two most important parameters; None where there are too few trials or parameters.

    Between the trials it is interpolated by inverse squared distance (Shepard 1968).
    """
    valued = [trial for trial in result.trials if trial.state == "finished" and trial.value is not None]
    if len(valued) < _MIN_TRIALS or len(parameters) < 2:
        return None
    shares = result.importance
    first, second = sorted(parameters, key=lambda each: -shares.get(each.key, 0.0))[:2]
    x, y = _parameter_axis(first), _parameter_axis(second)
    found = [(x.place(trial.params[first.key]), y.place(trial.params[second.key]), trial) for trial in valued]
    placed = [(left, up, trial) for left, up, trial in found if left is not None and up is not None]
    scores = [result.sign * (trial.value or 0.0) for _, _, trial in placed]
    low, high = min(scores), max(scores)
    points = [
        (left, up, (score - low) / (high - low) if high > low else 1.0)
        for (left, up, _), score in zip(placed, scores, strict=True)
    ]
    columns, rows = _count_cells(first), _count_cells(second)
    width, height = SIZE / columns, SIZE / rows
    cells = tuple(
        Cell(
            round(column * width, 2),
            round(SIZE - (row + 1) * height, 2),
            round(width, 2),
            round(height, 2),
            round(_interpolate((column + 0.5) / columns, (row + 0.5) / rows, points), 3),
        )
        for row in range(rows)
        for column in range(columns)
    )
    best = result.best
    return Contour(
        x,
        y,
        cells,
        points="".join(_dot(left, up) for left, up, _ in placed),
        best="".join(_dot(left, up) for left, up, trial in placed if best is not None and trial.number == best.number),
        label=f"{result.metric} of {counted(len(placed), 'trial')} over {first.key} and {second.key}; darker is better",
    )


def describe_trial(trial: Trial, metric: str) -> str:
    """Return a trial as a line of text."""
    params = ", ".join(f"{key} {as_text(value)}" for key, value in trial.params.items())
    value = "" if trial.value is None else f", {metric} {format_number(metric, trial.value)}"
    return f"trial {trial.number} {trial.state}: {params}{value}"


def _parameter_axis(parameter: Parameter) -> Axis:
    if parameter.kind == "choices":
        count = len(parameter.choices)
        places: Mapping[str, float] = {
            as_text(choice): (number + 0.5) / count for number, choice in enumerate(parameter.choices)
        }
        ticks = tuple(Tick(1 - share, text) for text, share in places.items())
        return Axis(parameter.key, ticks, lambda value: places.get(as_text(value)))
    scale = math.log10 if parameter.kind == "log" else float
    low, high = scale(parameter.low), scale(parameter.high)

    def place(value: object) -> float | None:
        is_inside = isinstance(value, int | float) and parameter.low <= value <= parameter.high
        return (scale(value) - low) / (high - low) if is_inside else None  # type: ignore[arg-type]  # it is a number

    ends = [low + share * (high - low) for share in _SHARES]
    texts = [f"{10**end if parameter.kind == 'log' else end:.3g}" for end in ends]
    return Axis(parameter.key, tuple(Tick(1 - share, text) for share, text in zip(_SHARES, texts, strict=True)), place)


def _metric_axis(result: SweepResult, valued: Sequence[Trial]) -> Axis:
    values = [trial.value for trial in valued if trial.value is not None]
    low, high = min(values), max(values)

    def place(value: object) -> float | None:
        return (value - low) / (high - low) if isinstance(value, int | float) and high > low else 0.5

    ends = [(share, low + share * (high - low)) for share in (_SHARES if high > low else (0.5,))]
    return Axis(result.metric, tuple(Tick(1 - at, format_number(result.metric, end)) for at, end in ends), place)


def _path(axes: Sequence[Axis], values: Sequence[object]) -> str:
    spacing, parts = WIDTH / max(1, len(axes) - 1), list[str]()
    for number, (axis, value) in enumerate(zip(axes, values, strict=True)):
        if (share := axis.place(value)) is not None:
            parts.append(f"{'L' if parts else 'M'}{number * spacing:.1f} {(1 - share) * SIZE:.1f}")
    return "".join(parts)


def _count_cells(parameter: Parameter) -> int:
    return len(parameter.choices) if parameter.kind == "choices" else _CELLS


def _interpolate(x: float, y: float, points: Sequence[tuple[float, float, float]]) -> float:
    weights = [(1 / ((x - left) ** 2 + (y - up) ** 2 + 1e-6), value) for left, up, value in points]
    return sum(weight * value for weight, value in weights) / sum(weight for weight, _ in weights)


def _dot(x: float, y: float) -> str:
    return f"M{x * SIZE:.1f} {(1 - y) * SIZE:.1f}h0"
