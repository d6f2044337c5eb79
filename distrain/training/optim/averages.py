"""Builds the average of the weights that is evaluated in their place."""

import torch
from torch import nn

from distrain.config import Recipe
from distrain.errors import RecipeError
from distrain.training.optim.foreign import is_schedule_free
from distrain.training.optim.weight_averaging import AveragedWeights, EmaWeights, ScheduleFreeWeights, SwaWeights


def build_average(
    recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int
) -> AveragedWeights | None:
    """Return the average of a recipe: moving, stochastic, or that of a schedule-free optimizer; None without one.

    Raises `RecipeError` where there would be two.
    """
    train = recipe.train
    if is_schedule_free(optimizer):
        for key in ("ema_decay", "swa_start_epochs", "lookahead"):
            if getattr(train, key) is not None:
                raise RecipeError(
                    f"train.{key} and optimizer.name={recipe.optimizer.name}, which has train() and eval(), each "
                    "average the weights; remove one"
                )
        return ScheduleFreeWeights(model, optimizer)
    if train.batchnorm_steps is not None and train.swa_start_epochs is None:
        raise RecipeError(
            f"train.batchnorm_steps is for averaged weights, and optimizer.name={recipe.optimizer.name} has no train() "
            "and eval(); remove it"
        )
    if train.ema_decay is not None:
        return EmaWeights(model, train.ema_decay, warmup=train.ema_warmup)
    if train.swa_start_epochs is None:
        return None
    return SwaWeights(
        model,
        first_step=round(train.swa_start_epochs * steps_per_epoch),
        every_steps=train.swa_every_steps or steps_per_epoch,
    )
