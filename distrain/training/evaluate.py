"""Evaluates the validation samples, each exactly once at every world size."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from distrain.config import Eval, Recipe
from distrain.data.loading.loader import BatchReader, read_batches
from distrain.data.loading.sampler import evaluation_order
from distrain.data.sources.base import Batch
from distrain.distributed.world import World
from distrain.tensors.dtensor import reshard
from distrain.training.device.precision import Precision
from distrain.training.losses import LossFunction
from distrain.training.metrics.accumulators import Confusion, Counter, LabelConfusion, build_counters
from distrain.training.metrics.curves import build_curves
from distrain.training.metrics.own import OwnEvaluation
from distrain.training.metrics.selection import ChosenMetrics
from distrain.training.own_code import check_outputs, check_value
from distrain.training.test_time_augmentation import predict_with_tta


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation, the same on every rank.

    `metrics` holds `val/loss` and `val/NAME` for each chosen metric, fractions, not percent, `val/top1/CLASS` for
    `accuracy_per_class`, and last those of the user and of torchmetrics. `confusion` is int64 on the CPU where a chosen
    metric needs it or the classes are few, else None: for classes [classes, classes], a row for a true class, a column
    for a predicted one; for labels [labels, truth, prediction].
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
    idle_batch: torch.Tensor | None,
    loss_function: LossFunction,
    chosen: ChosenMetrics,
    precision: Precision,
    views: Eval,
    world: World,
    must_break_off: Callable[[], bool],
    on_batch: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
    errors: list[Exception] | None = None,
) -> Evaluation | None:
    """Return the mean loss and the chosen metrics over all samples of all ranks' `batches`.

    Returns None on every rank if `must_break_off` returned True before a batch of any rank. An error of a batch is
    raised, or appended to `errors` where these are given: the evaluation then ends as if it were stopped.
    Batch i of the `num_batches` of all ranks is evaluated on rank i % world size. Counts are integers, and the float
    sums of the batches are added exactly, so the result does not depend on the number of ranks. `views` defines the
    views of an image over which the outputs are averaged. If calls of the model are collective, a rank without a batch
    calls it with `idle_batch`; None if they are not. `on_batch` is called for each batch of this rank with its number,
    logits [n, outputs] and targets.
    """
    modes = [(part, part.training) for part in (model, loss_function) if isinstance(part, nn.Module)]
    for part, _ in modes:
        part.eval()
    counters, curves = build_counters(chosen, world.device), build_curves(chosen, world.device)
    own = OwnEvaluation(chosen.own, num_batches, world)
    has_errors = chosen.target == "values"
    # Of each batch: samples, loss and, of values, absolute and squared errors, all summed over the samples.
    sums = torch.zeros(num_batches, 4 if has_errors else 2, dtype=torch.float64, device=world.device)
    batch_numbers = range(world.rank, num_batches, world.size)

    def predict(images: torch.Tensor) -> torch.Tensor:
        return check_outputs(model(images), model, num_samples=len(images), num_outputs=len(chosen.classes))

    def measure(number: int, images: torch.Tensor, targets: torch.Tensor) -> None:
        with precision.autocast():
            logits = predict_with_tta(predict, images, views)
            loss = check_value(loss_function(logits, targets), loss_function, logits=logits)
        row = [sums.new_full((), len(targets)), loss.double() * len(targets)]
        sums[number] = torch.stack(row + _errors(logits, targets) if has_errors else row)
        for counter in counters:
            counter.update(logits.float(), targets)
        if curves is not None:
            curves.update(logits.float(), targets)
        own.update(number, logits, targets)
        if on_batch is not None:
            on_batch(number, logits, targets)

    _measure_each(measure, zip(batch_numbers, batches, strict=True), must_break_off, errors)
    if idle_batch is not None and len(batch_numbers) < -(-num_batches // world.size):
        with precision.autocast():
            predict_with_tta(predict, idle_batch, views)
    reshard(model)
    for part, was_training in modes:
        part.train(was_training)
    rows, counts = _add_over_ranks(sums, counters, world)
    if any(row[0] == 0 for row in rows):
        return None
    areas = {} if curves is None else curves.results(world)
    others = own.results(int(math.fsum(row[0] for row in rows)), errors)
    return None if others is None else _conclude(rows, counters, counts, areas | others, chosen)


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


def _errors(outputs: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Return the absolute and the squared errors of [n, outputs], their means over the outputs, summed over samples."""
    errors = outputs.double() - targets.double()
    return [errors.abs().mean(dim=1).sum(), errors.square().mean(dim=1).sum()]


def _add_over_ranks(
    sums: torch.Tensor, counters: list[Counter], world: World
) -> tuple[list[list[float]], list[torch.Tensor]]:
    """Return the rows of all batches and the counts of all ranks on the host, with one collective call.

    The float64 sums are exact: only one rank has a nonzero value in each row, and counts are below 2^53.
    """
    parts = [sums, *(counter.counts for counter in counters)]
    total = world.all_reduce(torch.cat([part.flatten().double() for part in parts])).cpu()  # synchronises the device
    rows, *counts = torch.split(total, [part.numel() for part in parts])
    return rows.view_as(sums).tolist(), [
        count.long().view(counter.counts.shape) for count, counter in zip(counts, counters, strict=True)
    ]


def _conclude(
    rows: list[list[float]],
    counters: list[Counter],
    counts: list[torch.Tensor],
    others: dict[str, float],
    chosen: ChosenMetrics,
) -> Evaluation:
    samples, loss, *errors = (math.fsum(column) for column in zip(*rows, strict=True))
    results = {"loss": loss / samples}
    if errors:
        means = {"mae": errors[0] / samples, "rmse": math.sqrt(errors[1] / samples)}
        results |= {name: means[name] for name in chosen.names}
    confusion = None
    for counter, total in zip(counters, counts, strict=True):
        results |= counter.results(total, int(samples))
        if isinstance(counter, Confusion | LabelConfusion):
            confusion = total
    results |= others
    return Evaluation({f"val/{name}": value for name, value in results.items()}, int(samples), confusion)
