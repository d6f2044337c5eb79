"""Seeds the global generators of a process: torch's, numpy's and Python's."""

import random

import numpy as np
import torch

from distrain.rng import Purpose, derive_seed


def seed_generators(seed: int, purpose: Purpose, *place: int) -> None:
    """Seed the global generators, so that the next draws of other code depend only on seed, purpose and place.

    torch's generators of GPUs are not changed.
    """
    value = derive_seed(seed, purpose, *place)
    torch.default_generator.manual_seed(value)
    seed_other_generators(value)


def seed_other_generators(value: int) -> None:
    """Seed the global generators of NumPy and Python, which takes longer than a small network's loss."""
    np.random.seed(value & 0xFFFF_FFFF)
    random.seed(value)
