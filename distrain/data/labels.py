"""Owns how many samples each class has: what balancing rests upon."""

import numpy as np
from numpy.typing import NDArray

from distrain.data.sources import Source


def class_counts(source: Source) -> NDArray[np.int64]:
    """Return the number of samples of each class, int64[num_classes].

    Raises `DataError` where the source cannot tell its labels without reading every sample.
    """
    return np.bincount(source.read_labels(), minlength=len(source.classes)).astype(np.int64, copy=False)
