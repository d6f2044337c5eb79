"""Draws all random numbers of a run as pure functions of the seed and of their place in the run.

The mixing function is the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014). It is implemented here so that no order changes with the version of a library.
"""

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN = 0x9E37_79B9_7F4A_7C15
_MIX_1 = 0xBF58_476D_1CE4_E5B9
_MIX_2 = 0x94D0_49BB_1331_11EB


class Purpose(IntEnum):
    """What a seed is drawn for; two purposes never share a stream."""

    ORDER = 1
    SAMPLE = 2
    MODEL_INIT = 3
    MODEL_DRAW = 4
    VALIDATION = 5
    MIXING = 6
    AUGMENT = 7
    ALTERNATION = 8
    READING = 9
    BATCH = 10
    SUGGESTION = 20


def derive_seed(seed: int, purpose: Purpose, *place: int) -> int:
    """Return a 63-bit seed for one place in a run, for example (epoch, sample index) or (step, micro-batch)."""
    state = _stream(seed, purpose)
    for coordinate in place:
        state = _mix(state ^ coordinate)
    return state >> 1  # generators expect a signed 64-bit integer


def derive_keys(seed: int, purpose: Purpose, *place: "int | NDArray[np.int64]") -> NDArray[np.uint64]:
    """Return 64-bit keys for many places at once, uint64[n]: `key >> 1` is the `derive_seed` of each place.

    A coordinate is one number for all places, or int64[n]; all arrays have the same length. At least one is needed.
    """
    state: NDArray[np.uint64] = np.array([_stream(seed, purpose)], dtype=np.uint64)
    for coordinate in place:
        state = _mix_all(state ^ np.atleast_1d(np.asarray(coordinate, dtype=np.int64)).astype(np.uint64))
    return state


def uniform(keys: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Return `count` numbers for each of the keys uint64[n], uniform in [0, 1): float64[n, count] of 53 bits."""
    mixed = _mix_all(keys[:, None] ^ np.arange(count, dtype=np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """Return the order of an epoch: position p of the epoch reads sample `permutation(...)[p]`; int64[num_samples].

    Samples are sorted by a 64-bit key drawn for each one, so the order needs no state and no data.
    """
    keys = _keys(derive_seed(seed, Purpose.ORDER, epoch), num_samples)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def shuffled(seed: int, count: int) -> NDArray[np.int64]:
    """Return the numbers from 0 to `count` - 1 in the order of keys drawn from a derived seed; int64[count].

    The low bits of each key hold its number, so all keys differ, every sorting algorithm gives the same order, and
    sorting plain values takes a quarter of the time of `permutation`.
    """
    low = np.uint64((1 << count.bit_length()) - 1)
    keys = (_keys(seed, count) & ~low) | np.arange(count, dtype=np.uint64)
    keys.sort()
    return (keys & low).astype(np.int64)


def _keys(seed: int, count: int) -> NDArray[np.uint64]:
    keys = np.arange(1, count + 1, dtype=np.uint64)
    return _finalize(np.uint64(seed) + keys * np.uint64(_GOLDEN))  # uint64 arithmetic wraps around, as intended


@lru_cache(maxsize=64)
def _stream(seed: int, purpose: Purpose) -> int:
    return _mix(_mix(seed & _MASK) ^ purpose)


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _mix_all(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return _finalize(values + np.uint64(_GOLDEN))


def _finalize(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(_MIX_1)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(_MIX_2)
    return keys ^ (keys >> np.uint64(31))
