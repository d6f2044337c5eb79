"""Computes a metric of torchmetrics, or a torchmetrics.Metric of the user's, from states that add up over samples."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distrain.config.metrics import Measured
from distrain.config.parts import TORCHMETRICS, MetricPart
from distrain.errors import RecipeError
from distrain.messages import counted, first_line, nearest, shown

KEY = "eval.metrics"
MAX_VALUES = 2**24  # of float states of all batches: 128 MiB, added over the ranks once per evaluation
_DOMAINS = ("classification", "regression")  # of torchmetrics, whose metrics compare outputs with targets


class StateMetric:
    """A torchmetrics.Metric whose states add up: whole numbers are summed, others are combined batch by batch.

    It gets probabilities, because torchmetrics would guess for each batch whether its inputs are logits.
    """

    def __init__(self, metric: Any, part: MetricPart, target: Measured) -> None:
        self.part, self.name = part, part.key
        self.is_higher_better = read_direction(part, metric)
        self._metric = metric
        self._target = target
        self._combine = _find_reductions(metric, part)
        metric.distributed_available_fn = lambda: False  # compute() must not synchronize: the states are summed here
        self._shapes = {name: default.shape for name, default in metric._defaults.items()}
        self._states: dict[str, Tensor] = {}

    def begin(self, num_batches: int, device: torch.device) -> None:
        """Begin an evaluation; raises `RecipeError` where the states of its batches need too much memory."""
        self._metric.to(device)
        for name, shape in self._shapes.items():
            if self._is_counted(name):
                self._states[name] = torch.zeros(shape, dtype=torch.int64, device=device)
                continue
            if num_batches * shape.numel() > MAX_VALUES:
                raise RecipeError(
                    f"{KEY}: {self.part.name} keeps {counted(shape.numel(), 'number')}, which are stored for each "
                    f"of {counted(num_batches, 'batch', 'batches')}; raise eval.batch_size"
                )
            self._states[name] = torch.zeros(num_batches, *shape, dtype=torch.float64, device=device)

    def update(self, number: int, logits: Tensor, targets: Tensor) -> None:
        """Measure a batch by itself, and keep its states."""
        self._metric.reset()
        self._metric.update(*self._inputs(logits, targets))
        for name in self._states:
            value = getattr(self._metric, name)
            if value.shape != self._shapes[name]:
                self._reshape(name, value)
            if self._is_counted(name):
                self._states[name] += value
            else:
                self._states[name][number] = value

    def sums(self) -> list[Tensor]:
        """Return counts int64, and of other states float64 [batches, ...], which are 0 for those of other ranks."""
        return list(self._states.values())

    def result(self, sums: Sequence[Tensor], num_samples: int) -> float:  # noqa: ARG002 - the states have it
        """Return what the metric computes from the states of all batches; raises `RecipeError` unless it is one number.

        The metric has measured a batch on this rank.
        """
        for (name, default), total in zip(self._metric._defaults.items(), sums, strict=True):
            whole = total if self._is_counted(name) else self._combine[name](total)
            setattr(self._metric, name, whole.to(default.device, default.dtype))
        value = self._metric.compute()
        self._metric.reset()
        if not (isinstance(value, Tensor) and value.numel() == 1):
            seen = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
            raise RecipeError(
                f"{KEY}: {self.part.name} gives {seen}, and a metric is one number; choose its arguments so, such as "
                f"average: macro"
            )
        return float(value)

    def _reshape(self, name: str, value: Tensor) -> None:
        """Give a state the shape that it has after the first batch ever, which `check_own_metrics` measures."""
        if self._shapes[name] != self._metric._defaults[name].shape:
            raise RecipeError(
                f"{KEY}: {self.part.name} changes the shape of its state {name!r} from {list(self._shapes[name])} to "
                f"{list(value.shape)}; its states must have the same shape for each batch"
            )
        self._shapes[name] = value.shape
        rows = () if self._is_counted(name) else (len(self._states[name]),)
        self._states[name] = self._states[name].new_zeros(*rows, *value.shape)

    def _is_counted(self, name: str) -> bool:
        """Whether a state is a sum of whole numbers, which is exact in any order."""
        is_whole = not self._metric._defaults[name].dtype.is_floating_point
        return is_whole and self._combine[name] is _sum_in_order

    def _inputs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self._target == "values":
            return logits, targets
        # In float64, in which different logits nearly always have different probabilities.
        if self._target == "labels":
            return logits.double().sigmoid(), targets.long()
        return logits.double().softmax(dim=1), targets


def make_torchmetric(part: MetricPart) -> Any:
    """Make `torchmetrics.NAME`; raises `RecipeError` where there is none, or it does not accept the arguments."""
    try:
        import torchmetrics  # takes seconds to import
    except ModuleNotFoundError:
        raise RecipeError(
            f"{KEY}={part.name} needs torchmetrics, which is not installed; pip install 'distrain[torchmetrics]'"
        ) from None
    known = _torchmetrics_names(torchmetrics)
    name = part.name.removeprefix(TORCHMETRICS)
    if name not in known:
        hint = nearest(name, known) or "; use one of its metrics of classification or regression"
        raise RecipeError(f"{KEY}: torchmetrics has no metric {name!r}{hint}")
    try:
        return known[name](**part.arguments)
    except (TypeError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        raise RecipeError(f"{KEY}: {part.name} does not accept {shown(part.arguments)}: {first_line(error)}") from None


def _torchmetrics_names(torchmetrics: Any) -> dict[str, Any]:
    public = [vars(getattr(torchmetrics, domain)) for domain in _DOMAINS]
    return {
        name: value
        for names in public
        for name, value in names.items()
        if isinstance(value, type) and issubclass(value, torchmetrics.Metric)
    }


def is_torchmetric(made: object) -> bool:
    """Whether an object is a torchmetrics.Metric, without importing torchmetrics where nobody has."""
    return any(f"{kind.__module__}.{kind.__name__}" == "torchmetrics.metric.Metric" for kind in type(made).__mro__)


def read_direction(part: MetricPart, metric: object) -> bool | None:
    """Return whether higher is better, as the recipe or else the metric says; None where neither does."""
    if part.higher_is_better is not None:
        return part.higher_is_better
    stated = getattr(metric, "higher_is_better", None)  # the name in torchmetrics
    return stated if isinstance(stated, bool) else None


def _find_reductions(metric: Any, part: MetricPart) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return how each state of a metric is combined from those of batches; raises `RecipeError` where it cannot be."""
    from torchmetrics.utilities.data import dim_zero_max, dim_zero_min, dim_zero_sum

    exact = {
        dim_zero_sum: _sum_in_order,
        dim_zero_max: lambda rows: rows.amax(dim=0),
        dim_zero_min: lambda rows: rows.amin(dim=0),
    }
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, reduction in metric._reductions.items():
        default = metric._defaults[name]
        if isinstance(default, list):
            raise RecipeError(
                f"{KEY}: {part.name} keeps every sample in its state {name!r}, which would gather the whole split on "
                f"each process; choose a binned form, such as with thresholds: 200, or another metric"
            )
        if reduction not in exact or (exact[reduction] is _sum_in_order and bool(default.any())):
            how = getattr(reduction, "__name__", reduction)
            raise RecipeError(
                f"{KEY}: {part.name} combines its state {name!r} by {how}, which does not add up over the samples of "
                f"several processes; use a metric whose states are sums, minima or maxima"
            )
        found[name] = exact[reduction]
    if not found:
        raise RecipeError(
            f"{KEY}: {part.name} has no states of its own, which are declared by add_state; name the metrics that it "
            f"is made of"
        )
    return found


def _sum_in_order(rows: Tensor) -> Tensor:
    """Return the sum of the batches in their order, float64."""
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total
