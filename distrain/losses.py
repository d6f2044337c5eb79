"""Owns the losses: functions of (logits, targets) that give the mean over a micro-batch."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from distrain.errors import RecipeError
from distrain.recipe import Loss
from distrain.references import is_reference, load_reference

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(config: Loss) -> LossFunction:
    """Return the loss of a recipe: logits [n, classes] and targets int64 [n] to a mean, a tensor without dimensions."""
    if is_reference(config.name):
        if config.label_smoothing:
            raise RecipeError(f"loss.label_smoothing is cross_entropy's, and loss.name is {config.name}; leave it 0")
        function: LossFunction = load_reference(config.name, key="loss.name")
        return function
    if config.name != "cross_entropy":
        raise RecipeError(f"there is no loss {config.name!r}; take cross_entropy, or package.module:function")
    return partial(F.cross_entropy, label_smoothing=config.label_smoothing)
