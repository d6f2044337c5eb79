"""Resolves the class weights of the loss, which are given as numbers or computed from the sample counts."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distrain.errors import DataError, RecipeError
from distrain.messages import counted


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
            raise RecipeError(
                f"loss.class_weights has {counted(len(wanted), 'number')} and the data has "
                f"{counted(len(classes), 'class', 'classes')}"
            )
        return torch.tensor(wanted, dtype=torch.float32)
    found = counts()
    if (found == 0).any():
        name = classes[int(np.argmin(found))]
        raise DataError(
            f"class {name!r} has no training samples, so loss.class_weights=balanced has no weight for it; add some, "
            f"or give the weights in numbers"
        )
    return torch.from_numpy(found.sum() / (len(classes) * found)).float()
