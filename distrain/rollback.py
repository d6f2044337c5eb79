"""Owns what follows on a step whose loss is not finite: back to the newest checkpoint, and on without its batch."""

import logging

from distrain.errors import TrainingError
from distrain.heart import Heart
from distrain.recipe import Recipe

log = logging.getLogger(__name__)


class NotFiniteError(Exception):
    """The loss or the update of a step is not finite, so that the weights after it are worth nothing.

    All ranks raise it together.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def leave_out(step: int, recipe: Recipe, skipped: frozenset[int], heart: Heart) -> frozenset[int]:
    """Return the steps to leave out from now on: training goes on from the newest checkpoint without this one.

    Raises `TrainingError` where that has been done too often.
    """
    if len(skipped) >= recipe.train.max_rollbacks:
        raise TrainingError(
            f"the loss of step {step} is not finite, and train.max_rollbacks={recipe.train.max_rollbacks} batches "
            f"were left out before; lower optimizer.lr, or set train.clip_norm"
        )
    log.warning("the loss of step %d is not finite: goes back to the newest checkpoint and leaves its batch out", step)
    heart.status.skipped_steps = sorted({*skipped, step})
    heart.beat()  # a kill does not make it forgotten
    return skipped | {step}
