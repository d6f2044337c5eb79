"""Computes the order of samples in an epoch, as a pure function of the seed and the epoch.

Whatever the sampling, an epoch has as many positions as there are training samples.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from distrain.config import Data
from distrain.config.user_code import is_reference
from distrain.data.loading.sample_weights import read_weights
from distrain.data.loading.sampler import EpochOrder, Sampler
from distrain.data.sources.base import Source, is_read_in_order
from distrain.data.sources.class_counts import class_counts, read_labels
from distrain.errors import DataError
from distrain.rng import Purpose, derive_keys, derive_seed, permutation, shuffled, uniform

# The random draws of a balanced order, each with its own seed derived from (seed, order, epoch).
_CLASS_POSITIONS, _SAMPLES_OF_CLASS, _LARGER_CLASSES = 1, 2, 3
# Those of a weighted order, likewise.
_POSITIONS, _SAMPLES, _OFFSET = 1, 2, 3


def build_sampler(config: Data, source: Source, *, seed: int) -> Sampler:
    """Return the function that orders an epoch's training samples.

    Raises `DataError` where `config` does not fit, and `RecipeError` where the user's function gives no weights.
    """
    num_samples = len(source)
    if is_read_in_order(source):
        _check_stream_order(config)
        return partial(stream_order, num_samples=num_samples)
    num_drawn = -(-num_samples // config.repeats)
    sampler: Sampler = partial(uniform_order, num_samples=num_samples, num_drawn=num_drawn, seed=seed)
    if config.sampling == "balanced":
        _check_no_class_is_empty(source)
        labels, num_classes = read_labels(source), len(source.classes)
        sampler = partial(balanced_order, labels=labels, num_classes=num_classes, num_drawn=num_drawn, seed=seed)
    elif is_reference(config.sampling):
        weights = read_weights(config, source, seed=seed)
        sampler = partial(weighted_order, weights=weights, num_drawn=num_drawn, seed=seed)
    if config.repeats == 1:
        return sampler
    return partial(repeated_order, sampler=sampler, repeats=config.repeats, num_positions=num_samples)


def uniform_order(epoch: int, *, num_samples: int, num_drawn: int | None = None, seed: int) -> EpochOrder:
    """Return all samples of an epoch once each, in random order; only the first `num_drawn` if given."""
    return EpochOrder(permutation(seed, epoch, num_samples)[:num_drawn])


def balanced_order(
    epoch: int, *, labels: NDArray[np.int64], num_classes: int, num_drawn: int | None = None, seed: int
) -> EpochOrder:
    """Return an epoch in which all classes are equally frequent; `labels` int64[n] contain every class.

    Each class has the floor or the ceiling of `num_drawn` (n if not given) / `num_classes` positions, which are random.
    Its samples are cycled through in a random order for the epoch, so that none repeats before each of its class was
    used once.
    """
    num_drawn = len(labels) if num_drawn is None else num_drawn
    seeds = [
        derive_seed(seed, Purpose.ORDER, epoch, drawn)
        for drawn in (_CLASS_POSITIONS, _SAMPLES_OF_CLASS, _LARGER_CLASSES)
    ]
    small = np.min_scalar_type(num_classes)  # numpy uses radix sort for 8 and 16 bits, in a tenth of the time
    quotas = num_drawn // num_classes + (shuffled(seeds[2], num_classes) < num_drawn % num_classes)
    class_at = np.repeat(np.arange(num_classes, dtype=small), quotas)[shuffled(seeds[0], num_drawn)]
    positions = np.argsort(class_at, kind="stable")  # those of class 0 first, then those of class 1, and so on
    samples = shuffled(seeds[1], len(labels))
    samples = samples[np.argsort(labels[samples].astype(small), kind="stable")]  # grouped by class, too
    counts = np.bincount(labels, minlength=num_classes)
    turns = np.arange(num_drawn) - np.repeat(np.cumsum(quotas) - quotas, quotas)  # index within the class
    rounds, places = np.divmod(turns, np.repeat(counts, quotas))
    indices, copies = np.empty(num_drawn, dtype=np.int64), np.empty(num_drawn, dtype=np.int64)
    indices[positions] = samples[np.repeat(np.cumsum(counts) - counts, quotas) + places]
    copies[positions] = rounds
    return EpochOrder(indices, copies)


def weighted_order(epoch: int, *, weights: NDArray[np.float64], num_drawn: int, seed: int) -> EpochOrder:
    """Return an epoch in which samples are drawn in proportion to `weights` float64 [n], by systematic sampling.

    Each sample has the floor or the ceiling of its expected number of positions, which are random: its share of all
    weights x `num_drawn`. The same holds for all samples of one weight together, to within one; equal weights give each
    sample once. Madow, "On the theory of systematic sampling, II", 1949.
    """
    seeds = [derive_seed(seed, Purpose.ORDER, epoch, drawn) for drawn in (_POSITIONS, _SAMPLES)]
    samples = shuffled(seeds[1], len(weights))
    samples = samples[np.argsort(weights[samples], kind="stable")]  # those of one weight side by side
    offset = uniform(derive_keys(seed, Purpose.ORDER, epoch, _OFFSET), 1).item()
    reached = np.cumsum(weights[samples])
    ends = np.minimum(np.floor(num_drawn * (reached / reached[-1]) + offset), num_drawn).astype(np.int64)
    ends[reached == reached[-1]] = num_drawn
    counts = np.diff(ends, prepend=0)
    copies = np.arange(num_drawn) - np.repeat(ends - counts, counts)
    positions = shuffled(seeds[0], num_drawn)
    return EpochOrder(np.repeat(samples, counts)[positions], copies[positions])


def repeated_order(epoch: int, *, sampler: Sampler, repeats: int, num_positions: int) -> EpochOrder:
    """Return `num_positions` positions in which each sample that `sampler` draws is repeated `repeats` times in a row.

    Repeated augmentation: Hoffer et al., "Augment your batch: improving generalization through instance repetition",
    CVPR 2020. Each copy is augmented independently, and an epoch uses one in `repeats` of the samples.
    """
    drawn = sampler(epoch)
    rank, copy = np.divmod(np.arange(num_positions), repeats)
    before = 0 if drawn.copies is None else drawn.copies[rank] * repeats
    return EpochOrder(drawn.indices[rank], before + copy)


def stream_order(epoch: int, *, num_samples: int) -> EpochOrder:
    """Return the samples of a stream in its own order, numbered over all epochs, as `Stream` reads them."""
    return EpochOrder(np.arange(epoch * num_samples, (epoch + 1) * num_samples, dtype=np.int64))


def _check_no_class_is_empty(source: Source) -> None:
    counts = class_counts(source)
    if (counts == 0).any():
        name = source.classes[int(np.argmin(counts))]
        raise DataError(
            f"class {name!r} has no training samples, so data.sampling=balanced cannot draw any; add some, or remove it"
        )


def _check_stream_order(config: Data) -> None:
    for field, default in (("sampling", "uniform"), ("repeats", 1)):
        if (value := getattr(config, field)) != default:
            raise DataError(
                f"data.source={config.source} is a stream, whose samples are trained on in the stream's order, so "
                f"data.{field}={value} is not available; use {default}, or a dataset with __getitem__"
            )
