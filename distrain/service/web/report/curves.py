"""Chooses the charts of runs: which metrics belong together, in which order, and how each line is called."""

from collections.abc import Mapping, Sequence

import numpy as np

from distrain.config.metrics import is_number, title_of
from distrain.runs.curves import Curve
from distrain.service.web.report.charts import Chart, Line, draw_chart

POINTS = 300  # of a line: about one for each pixel of a printed chart
MAX_LINES = 8  # of the machines in one chart
_MACHINES = ("rank", "node", "gpu")
_TITLES = {
    "train/loss": "Training loss",
    "train/lr": "Learning rate",
    "train/grad_norm": "Gradient norm",
    "train/samples_per_s": "Samples per second",
}
_FIRST = ("train/lr", "train/grad_norm", "train/samples_per_s")


def draw_run(curves: Mapping[str, Curve], *, best_by: str) -> list[Chart]:
    """Return the charts of one run by step: losses, evaluations, what the training does, then metrics of its own."""
    groups = {"Loss": ["train/loss", "val/loss"]}
    groups |= {_title(key): [key] for key in _metrics_of_training(curves, best_by) if not key.endswith("/loss")}
    charts = []
    for title, keys in groups.items():
        lines = [
            _line(curves[key], name=_line_name(key), style=style) for style, key in enumerate(keys) if key in curves
        ]
        if lines and (chart := draw_chart(title, lines, metric=keys[0])) is not None:
            charts.append(chart)
    return charts


def draw_machines(curves: Mapping[str, Curve]) -> list[Chart]:
    """Return the charts of the figures of ranks, nodes and GPUs, with a line for each of at most `MAX_LINES`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key in curves:
        kind, _, rest = key.partition("/")
        _, _, figure = rest.partition("/")
        if kind in _MACHINES and figure:
            groups.setdefault((kind, figure), []).append(key)
    charts = []
    for (kind, figure), keys in groups.items():
        lines = [
            _line(curves[key], name=" ".join(key.split("/")[:2]), style=style)
            for style, key in enumerate(keys[:MAX_LINES])
        ]
        more = f", {MAX_LINES} of {len(keys)}" if len(keys) > MAX_LINES else ""
        chart = draw_chart(f"{figure.replace('_', ' ')} of each {kind}{more}", lines, metric=figure)
        charts += [] if chart is None else [chart]
    return charts


def draw_comparison(runs: Sequence[tuple[str, Mapping[str, Curve]]], *, best_by: str, by_epoch: bool) -> list[Chart]:
    """Return charts with a line for each run that has the metric; by epoch where steps have different sizes."""
    keys = dict.fromkeys(key for _, curves in runs for key in _metrics_of_training(curves, best_by))
    charts = []
    for key in keys:
        lines = [
            _line(curves[key], name=name, style=style, by_epoch=by_epoch)
            for style, (name, curves) in enumerate(runs)
            if key in curves
        ]
        chart = draw_chart(_title(key), lines, metric=key, x_title="epoch" if by_epoch else "step")
        charts += [] if chart is None else [chart]
    return charts


def _metrics_of_training(curves: Mapping[str, Curve], best_by: str) -> list[str]:
    """Return the keys of a run but those of its machines and classes: losses, the best evaluation's, others."""
    evaluations = [key for key in curves if key.startswith("val/") and key.count("/") == 1]
    order = ["train/loss", "val/loss", f"val/{best_by}", *evaluations, *_FIRST, *curves]
    return [
        key
        for key in dict.fromkeys(order)
        if key in curves
        and key.partition("/")[0] not in _MACHINES
        and not (key.startswith("val/") and key.count("/") > 1)
    ]


def _line(curve: Curve, *, name: str, style: int, by_epoch: bool = False) -> Line:
    known = np.isfinite(curve.epoch) if by_epoch else np.full(len(curve.step), fill_value=True)
    x = curve.epoch if by_epoch else curve.step
    mean, low, high = (column[known].tolist() for column in (curve.mean, curve.min, curve.max))
    return Line(name, x[known].tolist(), mean, low, high, style)


def _title(key: str) -> str:
    group, _, name = key.partition("/")
    if key in _TITLES:
        return _TITLES[key]
    if group == "val" and is_number(name):
        return "Validation loss" if name == "loss" else f"Validation {title_of(name)}"
    return key


def _line_name(key: str) -> str:
    return {"train": "training", "val": "validation"}.get(key.partition("/")[0], key)
