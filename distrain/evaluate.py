"""Owns evaluation: the validation samples, each counted exactly once at every world size."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from distrain.data.loader import Batch
from distrain.losses import LossFunction
from distrain.precision import Precision
from distrain.world import World


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterator[Batch],
    *,
    num_batches: int,
    idle_batch: torch.Tensor | None,
    loss_function: LossFunction,
    precision: Precision,
    world: World,
    must_break_off: Callable[[], bool],
) -> dict[str, float] | None:
    """Return the mean loss and the top-1 accuracy, a fraction, over all samples of all ranks' `batches`.

    None, on every rank, where any of them broke off, which a rank does before the batch at which it finds that it must.
    Batch i of the `num_batches` of all ranks comes to rank i % world size. The batches' sums are added exactly, so the
    result does not depend on the number of ranks. `idle_batch` is what a rank without a batch calls the model with,
    where every call is a collective one; None where the model is the rank's own.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(num_batches, 3, dtype=torch.float64, device=world.device)  # loss, correct, samples
    own = range(world.rank, num_batches, world.size)
    for number, (images, targets) in zip(own, batches, strict=True):
        if must_break_off():
            break
        with precision.autocast():
            logits = model(images)
            loss = loss_function(logits, targets)
        correct = (logits.argmax(dim=1) == targets).sum()
        sums[number] = torch.stack([loss.double() * len(targets), correct.double(), sums.new_tensor(len(targets))])
    if idle_batch is not None and len(own) < -(-num_batches // world.size):
        model(idle_batch)
    model.train(was_training)
    rows = world.all_reduce(sums).tolist()  # synchronises the device; x + 0 is exact
    if any(count == 0 for _, _, count in rows):
        return None
    loss_sum, correct_sum, count = (math.fsum(column) for column in zip(*rows, strict=True))
    return {"val/loss": loss_sum / count, "val/top1": correct_sum / count}
