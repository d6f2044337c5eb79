"""Chooses the metrics: those that a recipe names, or the usual ones for its kind of target."""

from collections.abc import Sequence
from dataclasses import dataclass

from distrain.config import Eval
from distrain.config.metrics import ALWAYS_MEASURED, METRICS, Measured, is_number
from distrain.errors import RecipeError
from distrain.messages import counted
from distrain.training.metrics.own import OwnMetric, build_own_metrics

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
    names: tuple[str, ...]  # of distrain's metrics
    best: str  # the metric that says which evaluation is the best
    shown: tuple[
        str, ...
    ]  # shown in lines of text next to the loss: the one that selects the best, and those that are named
    own: tuple[OwnMetric, ...] = ()  # torchmetrics' and the user's

    @property
    def own_directions(self) -> dict[str, bool | None]:
        """Whether higher values of a metric in `own` are better, by its name; None where that is not known."""
        return {metric.name: metric.is_higher_better for metric in self.own}

    @property
    def has_small_confusion_matrix(self) -> bool:
        """Whether there is a confusion matrix that costs next to nothing, and is counted whatever is chosen."""
        return self.target == "class" and len(self.classes) <= MAX_CLASSES_COUNTED


def choose_metrics(config: Eval, *, target: Measured, classes: Sequence[str], is_own: bool = False) -> ChosenMetrics:
    """Return what to measure; raises `RecipeError` for a metric that does not go with the target or the classes.

    Metrics that are not distrain's are made here. The metric by which the best evaluation is chosen is always among
    them. With `is_own` the task is the user's code: it says itself what it measures, and the loss decides unless the
    recipe names another metric.
    """
    usual = (ALWAYS_MEASURED,) if is_own else _DEFAULTS[target]
    best = config.best or usual[0]
    defaults = tuple(name for name in usual if name != "top5" or len(classes) > _TOP5)
    listed = tuple(part.key for part in config.metrics or ())
    own = build_own_metrics(config.own_metrics, target=target)
    directions = {metric.name: metric.is_higher_better for metric in own}
    named = defaults if config.metrics is None else tuple(name for name in listed if name not in directions)
    for key, names in (("metrics", named), ("best", () if best in directions else (best,))):
        for name in names:
            _check(f"eval.{key}", name, target, len(classes))
    if directions.get(best, True) is None:
        raise RecipeError(
            f"eval.best={best} does not say whether higher is better; write {{name: ..., higher_is_better: true}}, or "
            f"false, in eval.metrics"
        )
    shown = (best if best != ALWAYS_MEASURED else usual[0], *listed)
    return ChosenMetrics(
        target=target,
        classes=tuple(classes),
        names=tuple(n for n in dict.fromkeys((*named, best, *shown)) if n in METRICS and n != ALWAYS_MEASURED),
        best=best,
        shown=tuple(name for name in dict.fromkeys(shown) if is_number(name) and name != ALWAYS_MEASURED),
        own=own,
    )


def _check(key: str, name: str, target: Measured, num_classes: int) -> None:
    if target not in METRICS[name].targets:
        fitting = ", ".join(other for other, metric in METRICS.items() if target in metric.targets)
        raise RecipeError(f"{key} names {name}, which is not for data whose target is {target}; use {fitting}")
    if name == "top5" and num_classes < _TOP5:
        raise RecipeError(f"{key} names top5, and the data has {counted(num_classes, 'class', 'classes')}; remove it")
