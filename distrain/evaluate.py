"""Owns evaluation: the validation samples, each counted exactly once at every world size."""

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
    loss_function: LossFunction,
    precision: Precision,
    world: World,
    must_break_off: Callable[[], bool],
) -> dict[str, float] | None:
    """Return the mean loss and the top-1 accuracy, a fraction, over all samples of all ranks' `batches`.

    None, on every rank, where any of them broke off, which a rank does before the batch at which it finds that it must.
    The model is the bare module: ranks may have different numbers of batches, so no collective call stands in the loop.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)  # loss, correct, samples, ranks that broke off
    for images, targets in batches:
        if must_break_off():
            sums[3] = 1
            break
        with precision.autocast():
            logits = model(images)
            loss = loss_function(logits, targets)
        correct = (logits.argmax(dim=1) == targets).sum()
        sums[:3] += torch.stack([loss.double() * len(targets), correct.double(), sums.new_tensor(len(targets))])
    model.train(was_training)
    loss_sum, correct_sum, count, num_broken_off = world.all_reduce(sums).tolist()  # synchronises the device
    if num_broken_off:
        return None
    return {"val/loss": loss_sum / count, "val/top1": correct_sum / count}
