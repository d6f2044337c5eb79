"""Chooses the metrics: those that a recipe names, or the usual ones for its kind of target."""

from collections.abc import Sequence
from dataclasses import dataclass

from distrain.config import Eval
from distrain.config.metrics import ALWAYS_MEASURED, METRICS, Measured
from distrain.errors import RecipeError
from distrain.messages import counted

MAX_CLASSES_COUNTED = 1000  # a matrix of 8 MB, added over the ranks once per evaluation
_TOP5 = 5
_DEFAULTS: dict[Measured, tuple[str, ...]] = {
    "class": ("top1", "top5"),
    "labels": ("f1", "auroc", "exact_match"),
    "values": ("mae", "rmse"),
    "mask": ("iou", "pixel_accuracy"),
    "views": ("knn",),
}


@dataclass(frozen=True)
class ChosenMetrics:
    """The metrics that the evaluations of a run compute in addition to the loss."""

    target: Measured
    classes: tuple[str, ...]  # of the data, by label; for labels and values one name per output
    names: tuple[str, ...]
    best: str  # the metric that says which evaluation is the best
    shown: tuple[
        str, ...
    ]  # shown in lines of text next to the loss: the one that selects the best, and those that are named

    @property
    def has_small_confusion_matrix(self) -> bool:
        """Whether there is a confusion matrix that costs next to nothing, and is counted whatever is chosen."""
        return self.target == "class" and len(self.classes) <= MAX_CLASSES_COUNTED


def choose_metrics(config: Eval, *, target: Measured, classes: Sequence[str], is_own: bool = False) -> ChosenMetrics:
    """Return what to measure; raises `RecipeError` for a metric that does not go with the target or the classes.

    The metric by which the best evaluation is chosen is always among them. With `is_own` the task is the user's code:
    it says itself what it measures, and the loss decides unless the recipe names another metric.
    """
    usual = (ALWAYS_MEASURED,) if is_own else _DEFAULTS[target]
    best = config.best or usual[0]
    defaults = tuple(name for name in usual if name != "top5" or len(classes) > _TOP5)
    named = defaults if config.metrics is None else config.metrics
    for key, names in (("metrics", named), ("best", (best,))):
        for name in names:
            _check(f"eval.{key}", name, target, len(classes))
    shown = (best if best != ALWAYS_MEASURED else usual[0], *(config.metrics or ()))
    return ChosenMetrics(
        target=target,
        classes=tuple(classes),
        names=tuple(name for name in dict.fromkeys((*named, best, *shown)) if name != ALWAYS_MEASURED),
        best=best,
        shown=tuple(name for name in dict.fromkeys(shown) if METRICS[name].is_number and name != ALWAYS_MEASURED),
    )


def _check(key: str, name: str, target: Measured, num_classes: int) -> None:
    if target not in METRICS[name].targets:
        fitting = ", ".join(other for other, metric in METRICS.items() if target in metric.targets)
        raise RecipeError(f"{key} names {name}, which is not for data whose target is {target}; use {fitting}")
    if name == "top5" and num_classes < _TOP5:
        raise RecipeError(f"{key} names top5, and the data has {counted(num_classes, 'class', 'classes')}; remove it")
