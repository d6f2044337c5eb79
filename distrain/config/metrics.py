"""Lists the metrics of an evaluation: for which targets each is, whether higher is better, and how it is shown.

This module needs no torch. In `training/metrics`, `selection` chooses the metrics of a recipe, `accumulators` counts
them on the device, and `curves` computes areas under curves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

# What a sample's target is: one class, int64 [n]; a 0 or 1 for each label, or values, float32 [n, outputs]; a mask with
# a class for each pixel, uint8 [n, height, width].
Target = Literal["class", "labels", "values", "mask"]
# What is measured: outputs against these, or views of images against each other.
Measured = Target | Literal["views"]


@dataclass(frozen=True)
class Metric:
    """The fixed properties of a metric."""

    title: str  # its name in a line of text
    targets: tuple[Measured, ...]
    is_higher_better: bool = True
    is_percent: bool = False  # whether it is displayed as a percentage; records hold fractions
    is_number: bool = True  # whether it is recorded as one number, `val/NAME`, that can select the best evaluation


METRICS: dict[str, Metric] = {
    "loss": Metric("val loss", ("class", "labels", "values", "mask", "views"), is_higher_better=False),
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
    "iou": Metric("mean IoU", ("mask",), is_percent=True),
    "pixel_accuracy": Metric("pixel accuracy", ("mask",), is_percent=True),
    "iou_per_class": Metric("IoU of each class", ("mask",), is_percent=True, is_number=False),
    "knn": Metric("nearest neighbour", ("views",), is_percent=True),
}
ALWAYS_MEASURED = "loss"
OwnMetrics = Mapping[str, bool | None]  # metrics that are not in METRICS: whether higher is better, None: not known
NO_OWN: OwnMetrics = {}
MIN_LARGE = 1e5  # a loss from which on four decimals say nothing


def title_of(name: str) -> str:
    """Return the name of a metric in a line of text; one of the user's has no other than its own."""
    return METRICS[name].title if name in METRICS else name


def is_number(name: str) -> bool:
    """Whether `val/NAME` is one number for the whole split: not that of a class, such as `top1/ants`."""
    return METRICS[name].is_number if name in METRICS else "/" not in name


def is_higher_better(name: str, own: OwnMetrics = NO_OWN) -> bool | None:
    """Return whether higher values of a metric are better; None where that is not known."""
    return METRICS[name].is_higher_better if name in METRICS else own.get(name)


def restore_nan(evaluation: Mapping[str, float | None]) -> dict[str, float]:
    """Return an evaluation that was read from strict JSON, which has null for a number that is not finite, as NaN."""
    return {name: math.nan if value is None else value for name, value in evaluation.items()}


def _read_evaluation(value: object) -> object:
    return restore_nan(value) if isinstance(value, dict) else value


Evaluation = Annotated[dict[str, float], BeforeValidator(_read_evaluation)]  # metrics by name, read from strict JSON


def score(name: str, evaluation: Mapping[str, float], own: OwnMetrics = NO_OWN) -> float | None:
    """Return a score of an evaluation, higher is better; `own` are the metrics of the run that are not distrain's.

    None where the metric is missing, or it or the validation loss is not finite: such a network is not a candidate.
    """
    value, loss = evaluation.get(f"val/{name}", math.nan), evaluation.get(f"val/{ALWAYS_MEASURED}", 0.0)
    is_up = is_higher_better(name, own)
    if is_up is None or not (math.isfinite(value) and math.isfinite(loss)):
        return None
    return value if is_up else -value


def is_better(
    name: str, evaluation: Mapping[str, float], best: Mapping[str, float] | None, own: OwnMetrics = NO_OWN
) -> bool:
    """Whether an evaluation beats the best one so far; neither an equal one nor NaN does."""
    now, before = score(name, evaluation, own), None if best is None else score(name, best, own)
    return now is not None and (before is None or now > before)


def format_value(name: str, evaluation: Mapping[str, float]) -> str:
    """Return the value of a metric for display, such as `99.44%`; `-` where the evaluation does not have it."""
    value = evaluation.get(f"val/{name}")
    if value is None:
        return "-"
    if name == ALWAYS_MEASURED:
        return format_loss(value)
    known = METRICS.get(name)
    if known is not None and known.is_percent:
        return f"{value:.2%}"
    return f"{value:.4f}" if known is not None and known.is_higher_better else f"{value:.4g}"


def format_loss(value: float) -> str:
    """Return a loss for display, such as `0.1234`; a large one is short, such as `1.994e+13`."""
    return f"{value:.3e}" if MIN_LARGE <= abs(value) < math.inf else f"{value:.4f}"


def format_metric(name: str, evaluation: Mapping[str, float], *, split: str = "val") -> str:
    """Return the title and value of a metric, such as `top-1 99.44%`; the title of the loss begins with the split."""
    title = f"{split} loss".lstrip() if name == ALWAYS_MEASURED else title_of(name)
    return f"{title} {format_value(name, evaluation)}"


def format_evaluation(evaluation: Mapping[str, float], *, split: str = "val") -> str:
    """Return the metrics of an evaluation that are one number each, in a line; `split` is what was evaluated."""
    names = [key.removeprefix("val/") for key in evaluation if key.startswith("val/")]  # whichever split it was
    return ", ".join(format_metric(name, evaluation, split=split) for name in names if is_number(name))
