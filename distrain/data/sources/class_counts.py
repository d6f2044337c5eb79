"""Counts the samples of each class, for balancing."""

import numpy as np
from numpy.typing import NDArray

from distrain.data.sources.base import Source
from distrain.errors import DataError


def class_counts(source: Source) -> NDArray[np.int64]:
    """Return the number of samples of each class, int64[num_classes].

    Raises `DataError` where samples have no class, or cannot be counted before they are read.
    """
    return np.bincount(read_labels(source), minlength=len(source.classes)).astype(np.int64, copy=False)


def read_labels(source: Source) -> NDArray[np.int64]:
    """Return the class of every sample, int64[n]; raises `DataError` as `class_counts` does."""
    if source.target != "class":
        raise DataError(
            f"the samples have {source.target} and no class; remove data.sampling=balanced and "
            f"loss.class_weights=balanced, which count the samples of each class"
        )
    return source.targets.numpy()
