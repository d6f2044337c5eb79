"""Owns evaluation: the validation samples, each counted exactly once at every world size."""

import math
from collections.abc import Iterator

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
) -> dict[str, float]:
    """Return the mean loss and the top-1 accuracy, a fraction, over all samples of all ranks' `batches`.

    Batch i of the `num_batches` of all ranks comes to rank i % world size. The batches' sums are added exactly, so the
    result does not depend on the number of ranks. `idle_batch` is what a rank without a batch calls the model with,
    where every call is a collective one; None where the model is the rank's own.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(num_batches, 3, dtype=torch.float64, device=world.device)  # loss, correct, samples
    own = range(world.rank, num_batches, world.size)
    for number, (images, targets) in zip(own, batches, strict=True):
        with precision.autocast():
            logits = model(images)
            loss = loss_function(logits, targets)
        correct = (logits.argmax(dim=1) == targets).sum()
        sums[number] = torch.stack([loss.double() * len(targets), correct.double(), sums.new_tensor(len(targets))])
    if idle_batch is not None and len(own) < -(-num_batches // world.size):
        model(idle_batch)
    model.train(was_training)
    columns = zip(*world.all_reduce(sums).tolist(), strict=True)  # synchronises the device; x + 0 is exact
    loss_sum, correct_sum, count = (math.fsum(column) for column in columns)
    return {"val/loss": loss_sum / count, "val/top1": correct_sum / count}
