"""Evaluates the validation samples, each exactly once at every world size."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from distrain.config import Recipe
from distrain.data.loading.loader import BatchReader, read_batches
from distrain.data.loading.sampler import evaluation_order
from distrain.data.sources.base import Batch
from distrain.distributed.world import World
from distrain.tensors.dtensor import reshard
from distrain.training.device.precision import Precision
from distrain.training.metrics.accumulators import Confusion, Counter, LabelConfusion, build_counters
from distrain.training.metrics.curves import Curves, build_curves
from distrain.training.metrics.own import OwnEvaluation
from distrain.training.metrics.selection import ChosenMetrics
from distrain.training.tasks.build import TaskCalls
from distrain.training.tasks.form import Shapes
from distrain.training.tasks.protocol import CONFUSION, LOSS, OUTPUTS, Sums


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation, the same on every rank.

    `metrics` holds `val/loss` and `val/NAME` for what the task measures and for each chosen metric, fractions, not
    percent, `val/top1/CLASS` for `accuracy_per_class`, and last those of the user and of torchmetrics. `confusion` is
    int64 on the CPU where a chosen metric needs it or the classes are few, else None: for classes [classes, classes], a
    row for a true class, a column for a predicted one; for labels [labels, truth, prediction].
    """

    metrics: dict[str, float]
    num_samples: int
    confusion: torch.Tensor | None

    @property
    def class_counts(self) -> torch.Tensor | None:
        """The numbers of correct samples and of all samples of each class: int64 [classes, 2]."""
        if self.confusion is None or self.confusion.dim() != 2:
            return None
        return torch.stack([self.confusion.diag(), self.confusion.sum(dim=1)], dim=1)


def read_evaluation_batches(
    reader: BatchReader, recipe: Recipe, world: World
) -> tuple[int, Generator[Batch, None, None]]:
    """Return the number of this rank's batches of an evaluation, and what yields them; close it when done."""
    order = evaluation_order(
        num_samples=len(reader.source), batch_size=recipe.eval.batch_size, rank=world.rank, world_size=world.size
    )
    data = recipe.data
    reading = read_batches(reader, order, num_workers=data.num_workers, device=world.device, loader=data.loader)
    return len(order), reading


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterator[Batch],
    *,
    num_batches: int,
    idle_batch: Batch | None,
    task: TaskCalls,
    chosen: ChosenMetrics,
    precision: Precision,
    world: World,
    must_break_off: Callable[[], bool],
    on_batch: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
    errors: list[Exception] | None = None,
) -> Evaluation | None:
    """Return what the task measures, and the chosen metrics of its outputs, over all samples of all ranks' `batches`.

    Returns None on every rank if `must_break_off` returned True before a batch of any rank. An error of a batch is
    raised, or appended to `errors` where these are given: the evaluation then ends as if it were stopped.
    Batch i of the `num_batches` of all ranks is evaluated on rank i % world size. Counts are integers, and the float
    sums of the batches are added exactly, so the result does not depend on the number of ranks. If calls of the model
    are collective, a rank without a batch evaluates `idle_batch`; None if they are not. `on_batch` is called for each
    batch of this rank with its number, logits [n, outputs] and targets, if the task has outputs for each sample.
    """
    modes = [(part, part.training) for part in (model, *task.modules)]
    for part, _ in modes:
        part.eval()
    form, has_errors = task.form, task.form.has_outputs and chosen.target == "values"
    counters = build_counters(chosen, world.device) if form.has_outputs else []
    curves = build_curves(chosen, world.device) if form.has_outputs else None
    measured: list[Counter | Curves] = [*counters, *([] if curves is None else [curves])]
    own = OwnEvaluation(chosen.own if form.has_outputs else (), num_batches, world)
    # Of each batch: samples, the sums of the task and, of values, absolute and squared errors summed over the samples.
    width = 1 + _num_values(form.sums) + (2 if has_errors else 0)
    sums = torch.zeros(num_batches, width, dtype=torch.float64, device=world.device)
    totals = torch.zeros(_num_values(form.counts), dtype=torch.int64, device=world.device)  # counts of the task
    batch_numbers = range(world.rank, num_batches, world.size)

    def measure(number: int, images: torch.Tensor, targets: torch.Tensor) -> None:
        with precision.autocast():
            found = task.evaluate(model, (images, targets))
        row = [sums.new_full((1,), len(targets)), *(found[name].double().reshape(-1) for name in form.sums)]
        logits = found.get(OUTPUTS)
        sums[number] = torch.cat(row if logits is None or not has_errors else [*row, _errors(logits, targets)])
        if form.counts:
            totals.add_(torch.cat([found[name].long().reshape(-1) for name in form.counts]))
        if logits is None:
            return
        for part in measured:
            part.update(logits.float(), targets)
        own.update(number, logits, targets)
        if on_batch is not None:
            on_batch(number, logits, targets)

    _measure_each(measure, zip(batch_numbers, batches, strict=True), must_break_off, errors)
    if idle_batch is not None and len(batch_numbers) < -(-num_batches // world.size):
        with precision.autocast():
            task.evaluate(model, idle_batch)
    reshard(model)
    for part, was_training in modes:
        part.train(was_training)
    rows, (own_counts, *counts) = _add_over_ranks(sums, [totals, *(counter.counts for counter in counters)], world)
    if any(row[0] == 0 for row in rows):
        return None
    areas = {} if curves is None else curves.results(world)
    samples, *values = (math.fsum(column) for column in zip(*rows, strict=True))
    others = own.results(int(samples), errors)
    if others is None:
        return None
    task_sums = _named(form.sums, torch.tensor(values, dtype=torch.float64)) | _named(form.counts, own_counts)
    results = {LOSS: values[0] / samples} | task.metrics(task_sums, int(samples))
    if has_errors:
        results |= _means_of_errors(values[-2:], samples, chosen)
    return _conclude(results, int(samples), counters, counts, areas | others, confusion=task_sums.get(CONFUSION))


def _measure_each(
    measure: Callable[[int, torch.Tensor, torch.Tensor], None],
    numbered: Iterator[tuple[int, Batch]],
    must_break_off: Callable[[], bool],
    errors: list[Exception] | None,
) -> None:
    try:
        for number, (images, targets) in numbered:
            if must_break_off():
                return
            measure(number, images, targets)
    except Exception as error:
        if errors is None:
            raise
        errors.append(error)


def _num_values(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _named(shapes: Shapes, values: torch.Tensor) -> Sums:
    """Return the values, of which the first ones are those of the names, in their shapes."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = torch.split(values[: sum(sizes)], sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _errors(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the absolute and the squared errors of [n, outputs], their means over the outputs, summed over samples."""
    errors = outputs.double() - targets.double()
    return torch.stack([errors.abs().mean(dim=1).sum(), errors.square().mean(dim=1).sum()])


def _means_of_errors(errors: list[float], samples: float, chosen: ChosenMetrics) -> dict[str, float]:
    means = {"mae": errors[0] / samples, "rmse": math.sqrt(errors[1] / samples)}
    return {name: means[name] for name in chosen.names}


def _add_over_ranks(
    sums: torch.Tensor, counts: list[torch.Tensor], world: World
) -> tuple[list[list[float]], list[torch.Tensor]]:
    """Return the rows of all batches and the counts of all ranks on the host, with one collective call.

    The float64 sums are exact: only one rank has a nonzero value in each row, and counts are below 2^53.
    """
    parts = [sums, *counts]
    total = world.all_reduce(torch.cat([part.flatten().double() for part in parts])).cpu()  # synchronises the device
    rows, *added = torch.split(total, [part.numel() for part in parts])
    return rows.view_as(sums).tolist(), [count.long().view(own.shape) for count, own in zip(added, counts, strict=True)]


def _conclude(
    results: dict[str, float],
    num_samples: int,
    counters: list[Counter],
    counts: list[torch.Tensor],
    others: dict[str, float],
    *,
    confusion: torch.Tensor | None,
) -> Evaluation:
    for counter, total in zip(counters, counts, strict=True):
        results |= counter.results(total, num_samples)
        if isinstance(counter, Confusion | LabelConfusion):
            confusion = total
    results |= others
    return Evaluation({f"val/{name}": value for name, value in results.items()}, num_samples, confusion)
