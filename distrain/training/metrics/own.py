"""Computes the metrics that are not distrain's: torchmetrics', and the user's own.

The batches of an evaluation are the same at every world size. Each metric is therefore measured batch by batch, and the
batches are combined in their order, so that the result has the same bits on any number of processes.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from distrain.config.metrics import Measured
from distrain.config.parts import TORCHMETRICS, MetricPart
from distrain.config.user_code import make_part
from distrain.distributed.world import World
from distrain.errors import RecipeError, UserError
from distrain.messages import counted, first_line
from distrain.runs.user_errors import is_of_the_machine, packages_of
from distrain.system.exits import place_of_code, user_frame
from distrain.training.metrics.states import KEY, StateMetric, is_torchmetric, make_torchmetric, read_direction

_MIN_SAMPLES = 4  # in the check: some metrics need several


class OwnMetric(Protocol):
    """A metric of one number, measured batch by batch."""

    part: MetricPart  # as the recipe has it
    name: str  # it is recorded as val/NAME
    is_higher_better: bool | None  # None where that is not known

    def begin(self, num_batches: int, device: torch.device) -> None:
        """Begin an evaluation of `num_batches` batches over all ranks."""
        ...

    def update(self, number: int, logits: Tensor, targets: Tensor) -> None:
        """Measure batch `number`: logits float32 [n, outputs], targets as the source gives them."""
        ...

    def sums(self) -> list[Tensor]:
        """Return the tensors whose sums over the ranks are the evaluation; their shapes are the same on every rank."""
        ...

    def result(self, sums: Sequence[Tensor], num_samples: int) -> float:
        """Return the metric from these sums, on the CPU, over all samples; called on rank 0."""
        ...


class MeanMetric:
    """The mean over the samples of a function (logits, targets) -> [n], exactly rounded."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any], part: MetricPart) -> None:
        self.part, self.name = part, part.key
        self.is_higher_better = read_direction(part, function)
        self._function = function
        self._rows = torch.empty(0)

    def begin(self, num_batches: int, device: torch.device) -> None:
        """Begin an evaluation."""
        self._rows = torch.zeros(num_batches, dtype=torch.float64, device=device)

    def update(self, number: int, logits: Tensor, targets: Tensor) -> None:
        """Add up the values of a batch; raises `RecipeError` where they are not one for each sample."""
        values = self._function(logits, targets)
        if not (isinstance(values, Tensor) and values.shape == (len(targets),)):
            seen = f"a tensor {list(values.shape)}" if isinstance(values, Tensor) else f"{values!r:.60}"
            raise RecipeError(
                f"{KEY}: {self.part.name} gives {seen} for {counted(len(targets), 'sample')}"
                f"{place_of_code(self._function)}; return a tensor [samples], or make a torchmetrics.Metric"
            )
        self._rows[number] = values.double().sum()

    def sums(self) -> list[Tensor]:
        """Return the sums of the batches, float64 [batches]: 0 for those of other ranks."""
        return [self._rows]

    def result(self, sums: Sequence[Tensor], num_samples: int) -> float:
        """Return the mean."""
        return _fsum(sums[0].tolist()) / num_samples


def build_own_metrics(parts: Sequence[MetricPart], *, target: Measured) -> tuple[OwnMetric, ...]:
    """Make the metrics that a recipe names; raises `RecipeError` for those whose states do not add up over samples."""
    return tuple(_build(part, target) for part in parts)


def check_own_metrics(metrics: Sequence[OwnMetric], targets: Tensor, *, num_outputs: int) -> None:
    """Measure made-up outputs for a few targets of the data; raises `RecipeError` where that fails.

    Errors of lines of the user's own code are not caught.
    """
    count = max(_MIN_SAMPLES, len(targets))
    targets = targets[torch.arange(count, device=targets.device) % len(targets)]
    logits = torch.linspace(-1, 1, count * num_outputs, device=targets.device).view(num_outputs, count).T.contiguous()
    for metric in metrics:
        name = metric.part.name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a few samples have not all classes
                metric.begin(1, targets.device)
                metric.update(0, logits, targets)
                metric.result([part.cpu() for part in metric.sums()], count)
        except Exception as error:
            is_own = user_frame(error, packages_of([name])) is not None
            if isinstance(error, UserError) or is_of_the_machine(error) or is_own:
                raise
            raise RecipeError(
                f"{KEY}: {name} does not accept outputs [{count}, {num_outputs}] and targets "
                f"{str(targets.dtype).removeprefix('torch.')} {list(targets.shape)}: {first_line(error)}"
            ) from error


class OwnEvaluation:
    """One evaluation by all of these metrics, of `num_batches` batches over all ranks."""

    def __init__(self, metrics: Sequence[OwnMetric], num_batches: int, world: World) -> None:
        self._metrics = metrics
        self._world = world
        for metric in metrics:
            metric.begin(num_batches, world.device)

    def update(self, number: int, logits: Tensor, targets: Tensor) -> None:
        """Measure batch `number`: logits [n, outputs], targets as the source gives them."""
        for metric in self._metrics:
            metric.update(number, logits.float(), targets)

    def results(self, num_samples: int, errors: list[Exception] | None) -> dict[str, float] | None:
        """Return the results by name, the same on every rank; all ranks call it together.

        None if a metric failed: its error is raised on rank 0, or appended to `errors` there.
        """
        if not self._metrics:
            return {}
        results, error = torch.zeros(len(self._metrics) + 1, dtype=torch.float64), None
        parts = [part for metric in self._metrics for part in metric.sums()]
        flat = torch.cat([part.flatten().double() for part in parts])  # counts are below 2^53
        pieces = torch.split(self._world.all_reduce(flat).cpu(), [part.numel() for part in parts])
        totals = iter([piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)])
        if self._world.is_rank_zero:
            try:
                for number, metric in enumerate(self._metrics):
                    results[number] = metric.result([next(totals) for _ in metric.sums()], num_samples)
            except Exception as raised:  # noqa: BLE001 - raised once the other ranks know of it
                error, results[-1] = raised, 1
        results = self._world.all_reduce(results)  # of rank 0: other kinds of processors may round differently
        if error is not None and errors is None:
            raise error
        if error is not None and errors is not None:
            errors.append(error)
        if results[-1]:
            return None
        return {metric.name: value for metric, value in zip(self._metrics, results.tolist(), strict=False)}


def _build(part: MetricPart, target: Measured) -> OwnMetric:
    if part.name.startswith(TORCHMETRICS):
        return StateMetric(make_torchmetric(part), part, target)
    made = make_part(part.name, part.arguments, key=KEY)
    if is_torchmetric(made):
        return StateMetric(made, part, target)
    if not callable(made):
        raise RecipeError(
            f"{KEY}={part.name} returns {made!r:.60}; return a torchmetrics.Metric, or a function of logits and targets"
        )
    return MeanMetric(made, part)


def _fsum(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond the largest number, or infinities of both signs
        return math.nan
