"""Metrics: what an evaluation measures, by name: for which targets, which way is better, and in which words.

The names here need no torch. `choice` says what a recipe measures on its data, `counters` counts it on the device, and
`curves` computes areas under curves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# What a sample's target is: one class, int64 [n]; a 0 or 1 for each label, or values, float32 [n, outputs].
Target = Literal["class", "labels", "values"]


@dataclass(frozen=True)
class Metric:
    """What is known of a metric without measuring it."""

    title: str  # what a line of text calls it
    targets: tuple[Target, ...]
    is_higher_better: bool = True
    is_percent: bool = False  # whether a person reads it as a percentage; records hold fractions
    is_number: bool = True  # whether it is recorded as one number, `val/NAME`, by which the best evaluation is chosen


METRICS: dict[str, Metric] = {
    "loss": Metric("val loss", ("class", "labels", "values"), is_higher_better=False),
    "top1": Metric("top-1", ("class",), is_percent=True),
    "top5": Metric("top-5", ("class",), is_percent=True),
    "accuracy_per_class": Metric("top-1 of each class", ("class",), is_percent=True, is_number=False),
    "exact_match": Metric("exact match", ("labels",), is_percent=True),
    "f1": Metric("F1", ("class", "labels"), is_percent=True),
    "precision": Metric("precision", ("class", "labels"), is_percent=True),
    "recall": Metric("recall", ("class", "labels"), is_percent=True),
    "auroc": Metric("AUROC", ("class", "labels")),
    "average_precision": Metric("mAP", ("class", "labels")),
    "confusion_matrix": Metric("confusion matrix", ("class", "labels"), is_number=False),
    "mae": Metric("MAE", ("values",), is_higher_better=False),
    "rmse": Metric("RMSE", ("values",), is_higher_better=False),
}
ALWAYS_MEASURED = "loss"


def score(name: str, evaluation: Mapping[str, float]) -> float | None:
    """Return by how much an evaluation is good, higher is better; None where it lacks the metric or that is NaN."""
    value = evaluation.get(f"val/{name}", math.nan)
    if math.isnan(value):
        return None
    return value if METRICS[name].is_higher_better else -value


def is_better(name: str, evaluation: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
    """Whether an evaluation beats the best one so far; an equal one does not, nor does NaN."""
    now, before = score(name, evaluation), None if best is None else score(name, best)
    return now is not None and (before is None or now > before)


def number_in_words(name: str, evaluation: Mapping[str, float]) -> str:
    """Return the number of a metric as a person reads it, such as `99.44%`; `-` where the evaluation lacks it."""
    value = evaluation.get(f"val/{name}")
    if value is None:
        return "-"
    if METRICS[name].is_percent:
        return f"{value:.2%}"
    return f"{value:.4f}" if METRICS[name].is_higher_better or name == ALWAYS_MEASURED else f"{value:.4g}"


def in_words(name: str, evaluation: Mapping[str, float]) -> str:
    """Return a metric with its number, such as `top-1 99.44%`."""
    return f"{METRICS[name].title} {number_in_words(name, evaluation)}"
