"""Splits a source into training and validation samples."""

import numpy as np
import torch

from distrain.data.sources.base import Source, subset
from distrain.errors import DataError
from distrain.messages import counted
from distrain.rng import Purpose, derive_seed, permutation


def split_off(source: Source, fraction: float, *, seed: int) -> dict[str, Source]:
    """Split a source into `train` and `val`, the latter with `fraction` of the samples, drawn by the seed.

    The number of samples from each class is rounded to the nearest, and at least one stays in `train`. Samples with
    labels or values are drawn from all alike. Both parts keep the order of the source.
    """
    is_val = torch.zeros(len(source), dtype=torch.bool)
    targets = source.targets if source.target == "class" else torch.zeros(len(source), dtype=torch.int64)
    for number in sorted(set(targets.tolist())):
        members = (targets == number).nonzero().flatten()
        count = min(int(len(members) * fraction + 0.5), len(members) - 1)
        order = permutation(derive_seed(seed, Purpose.VALIDATION, number), 0, len(members))
        is_val[members[torch.from_numpy(order[:count])]] = True
    if not is_val.any():
        raise DataError(
            f"data.val_fraction={fraction:g} of {counted(len(source), 'training sample')} leaves none for "
            "validation; increase it"
        )
    return {
        "train": subset(source, (~is_val).nonzero().flatten()),
        "val": subset(source, is_val.nonzero().flatten()),
    }


def draw(source: Source, num_samples: int | None, *, seed: int) -> Source:
    """Return `num_samples` of a source, drawn from all of it by the seed, in its order; None keeps the source."""
    if num_samples is None or num_samples >= len(source):
        return source
    return subset(source, torch.from_numpy(np.sort(permutation(seed, 0, len(source))[:num_samples])))
