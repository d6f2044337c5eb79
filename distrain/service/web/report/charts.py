"""Computes the shapes of line charts: paths, ticks and readings for SVG, which needs no script to be seen or printed.

A plot is drawn in a square of `SIZE` units that is stretched to its place on the page; y points down.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distrain.config.metrics import METRICS, format_value, is_number

SIZE = 1000.0
_NUM_TICKS = 5
_MAX_MARKS = 60  # points of a line up to which each has a mark
_LARGEST = 1e100  # values above are drawn as gaps
_LOG_RATIO = 100.0  # of the largest to the smallest loss, from which on the scale is logarithmic


@dataclass(frozen=True)
class Line:
    """The values of one metric: `low` and `high` are the smallest and largest of those that a value is the mean of."""

    name: str
    x: Sequence[float]
    y: Sequence[float]  # NaN and infinity are gaps
    low: Sequence[float]
    high: Sequence[float]
    style: int = 0  # its colour and dashes, the same in all charts of a report


@dataclass(frozen=True)
class Tick:
    """A place on an axis, as a share of its length, and its label."""

    share: float
    text: str

    @property
    def percent(self) -> str:
        """The place for an attribute of SVG."""
        return f"{self.share:.3%}"


@dataclass(frozen=True)
class DrawnLine:
    """A line as SVG paths; `band` is empty where no value is a mean of several. `last` is its newest value as text."""

    name: str
    style: int
    path: str
    band: str
    marks: str
    last: str


@dataclass(frozen=True)
class Chart:
    """A chart for a template; `readings` is what a script shows of the point that is pointed at."""

    title: str
    note: str
    label: str  # what the chart shows, for those who cannot see it
    lines: tuple[DrawnLine, ...]
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    readings: dict[str, Any]


def draw_chart(title: str, lines: Sequence[Line], *, metric: str, x_title: str = "step") -> Chart | None:
    """Return the chart of the lines of one metric; None where no value is finite."""
    lines = [line for line in lines if line.x]
    finite = [value for line in lines for value in (*line.low, *line.high) if abs(value) < _LARGEST]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    is_log = "loss" in metric and low > 0 and high / low >= _LOG_RATIO
    first, last = min(x for line in lines for x in line.x), max(x for line in lines for x in line.x)
    scale = (lambda value: math.log10(value) if value > 0 else math.nan) if is_log else float
    ticks = _log_ticks(low, high) if is_log else linear_ticks(low, high)
    if _is_percent(metric) and high <= 1:
        ticks = [tick for tick in ticks if tick < 1 + 1e-9]
    bottom, top = min(scale(ticks[0]), scale(low)), max(scale(ticks[-1]), scale(high))

    def place_y(value: float) -> float:
        return 1 - (scale(value) - bottom) / (top - bottom)

    def place_x(value: float) -> float:
        return (value - first) / (last - first) if last > first else 0.5

    return Chart(
        title=title,
        note="logarithmic scale" if is_log else "",
        label="; ".join(_describe(line, metric, x_title) for line in lines),
        lines=tuple(_draw(line, place_x, place_y, metric) for line in lines),
        x_title=x_title,
        x_ticks=tuple(Tick(place_x(x), f"{x:,.10g}") for x in linear_ticks(first, last) if first <= x <= last),
        y_ticks=tuple(Tick(place_y(y), format_tick(metric, y)) for y in ticks),
        readings={"x": x_title, "lines": [_readings(line, place_x, metric) for line in lines]},
    )


def linear_ticks(low: float, high: float) -> list[float]:
    """Return round numbers at equal distances, from at most `low` to at least `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    distance = next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= rough), 10 * power)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [number * distance for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // _NUM_TICKS)
    return [10.0**power for power in range(first, last + every, every)]


def format_number(metric: str, value: float) -> str:
    """Return the value of a metric by its key, such as `val/top1` or `train/loss`, for display."""
    group, _, name = metric.partition("/")
    if group == "val" and is_number(name):
        return format_value(name, {f"val/{name}": value})
    return f"{value:,.5g}" if abs(value) < 1e5 else f"{value:.5g}"


def format_tick(metric: str, value: float) -> str:
    """Return a round number for an axis: a percentage where values of the metric are displayed as such."""
    if _is_percent(metric):
        return f"{100 * value:.6g}%"
    return f"{value:,.6g}" if 1e-4 <= abs(value) < 1e6 or value == 0 else f"{value:.2g}"


def _is_percent(metric: str) -> bool:
    name = metric.removeprefix("val/")
    return name in METRICS and METRICS[name].is_percent


def _describe(line: Line, metric: str, x_title: str) -> str:
    values = [(x, y) for x, y in zip(line.x, line.y, strict=True) if abs(y) < _LARGEST]
    if not values:
        return f"{line.name}: no finite value"
    (first, begin), (last, end) = values[0], values[-1]
    return (
        f"{line.name}: {format_number(metric, begin)} at {x_title} {first:,.6g}, "
        f"{format_number(metric, end)} at {x_title} {last:,.6g}"
    )


def _draw(line: Line, place_x: Callable[[float], float], place_y: Callable[[float], float], metric: str) -> DrawnLine:
    means = [(place_x(x), place_y(y)) if abs(y) < _LARGEST else None for x, y in zip(line.x, line.y, strict=True)]
    drawn = [point for point in means if point is not None]
    is_marked = len(drawn) <= _MAX_MARKS
    has_means = any(low < high for low, high in zip(line.low, line.high, strict=True))
    return DrawnLine(
        line.name,
        line.style,
        path=_path(means),
        band=_band(line, place_x, place_y) if has_means else "",
        marks="".join(f"M{_units(x)} {_units(y)}h0" for x, y in drawn) if is_marked else "",
        last=format_number(metric, line.y[-1]),
    )


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    parts, is_open = list[str](), False
    for point in points:
        if point is not None:
            parts.append(f"{'L' if is_open else 'M'}{_units(point[0])} {_units(point[1])}")
        is_open = point is not None
    return "".join(parts)


def _band(line: Line, place_x: Callable[[float], float], place_y: Callable[[float], float]) -> str:
    """Return the area between the smallest and the largest values; a place without a finite mean is skipped."""
    places = [number for number, y in enumerate(line.y) if abs(y) < _LARGEST]
    upper = [(place_x(line.x[number]), place_y(line.high[number])) for number in places]
    lower = [(place_x(line.x[number]), place_y(line.low[number])) for number in reversed(places)]
    return "M" + "L".join(f"{_units(x)} {_units(y)}" for x, y in (*upper, *lower) if math.isfinite(y)) + "Z"


def _readings(line: Line, place_x: Callable[[float], float], metric: str) -> dict[str, Any]:
    found = [(x, y) for x, y in zip(line.x, line.y, strict=True) if abs(y) < _LARGEST]
    return {
        "newest": format_number(metric, line.y[-1]),
        "at": [round(place_x(x), 5) for x, _ in found],
        "x": [f"{x:,.7g}" for x, _ in found],
        "y": [format_number(metric, y) for _, y in found],
    }


def _units(share: float) -> str:
    return f"{share * SIZE:.1f}".removesuffix(".0")
