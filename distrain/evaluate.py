"""Owns evaluation: the validation samples, each counted exactly once at every world size."""

from collections.abc import Iterator

import torch
from torch import nn

from distrain.data.loader import Batch
from distrain.losses import LossFunction
from distrain.precision import Precision
from distrain.world import World


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterator[Batch], *, loss_function: LossFunction, precision: Precision, world: World
) -> dict[str, float]:
    """Return the mean loss and the top-1 accuracy, a fraction, over all samples of all ranks' `batches`.

    The model is the bare module: ranks may have different numbers of batches, so no collective call stands in the loop.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)  # loss, correct, samples
    for images, targets in batches:
        with precision.autocast():
            logits = model(images)
            loss = loss_function(logits, targets)
        correct = (logits.argmax(dim=1) == targets).sum()
        sums += torch.stack([loss.double() * len(targets), correct.double(), sums.new_tensor(len(targets))])
    model.train(was_training)
    loss_sum, correct_sum, count = world.all_reduce(sums).tolist()  # synchronises the device
    return {"val/loss": loss_sum / count, "val/top1": correct_sum / count}
