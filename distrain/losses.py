"""Owns the losses: functions of (logits, targets) that give the mean over a micro-batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from distrain.errors import DataError, RecipeError
from distrain.recipe import Loss
from distrain.references import is_reference, load_reference

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(config: Loss, *, class_weights: torch.Tensor | None = None) -> LossFunction:
    """Return the loss of a recipe: logits [n, classes] and targets int64 [n] to a mean, a tensor without dimensions.

    `class_weights` float32 [classes] are those of the recipe, resolved, on the device of the logits.
    """
    if is_reference(config.name):
        for field, default in (("label_smoothing", 0), ("class_weights", None)):
            if getattr(config, field) != default:
                wanted = "null" if default is None else default
                raise RecipeError(f"loss.{field} is cross_entropy's, and loss.name is {config.name}; leave it {wanted}")
        function: LossFunction = load_reference(config.name, key="loss.name")
        return function
    if config.name != "cross_entropy":
        raise RecipeError(f"there is no loss {config.name!r}; take cross_entropy, or package.module:function")
    if class_weights is not None:
        return partial(weighted_cross_entropy, class_weights=class_weights, label_smoothing=config.label_smoothing)
    return partial(F.cross_entropy, label_smoothing=config.label_smoothing)


def weighted_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, class_weights: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the sum of the samples' weighted losses over their number.

    torch's own mean divides by the sum of the weights, which differs from one micro-batch to the next: the mean over
    a batch would then depend on how it is cut.
    """
    total = F.cross_entropy(logits, targets, weight=class_weights, label_smoothing=label_smoothing, reduction="sum")
    return total / len(targets)


def resolve_class_weights(
    wanted: Literal["balanced"] | Sequence[float] | None,
    *,
    classes: Sequence[str],
    counts: Callable[[], NDArray[np.int64]],
) -> torch.Tensor | None:
    """Return the weights of the classes, float32 [classes], or None for none.

    Balanced weights are n / (num_classes * count), of mean 1 over the samples; `counts` gives the samples of each class
    and is called for these alone. Raises `RecipeError` for another number of weights than classes, and `DataError` for
    a class without samples.
    """
    if wanted is None:
        return None
    if wanted != "balanced":
        if len(wanted) != len(classes):
            raise RecipeError(f"loss.class_weights has {len(wanted)} numbers and the data has {len(classes)} classes")
        return torch.tensor(wanted, dtype=torch.float32)
    found = counts()
    if (found == 0).any():
        name = classes[int(np.argmin(found))]
        raise DataError(
            f"class {name!r} has no training samples, so loss.class_weights=balanced has no weight for it; add some, "
            f"or give the weights in numbers"
        )
    return torch.from_numpy(found.sum() / (len(classes) * found)).float()
