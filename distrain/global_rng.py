"""Seeds the generators that all code of a process shares: torch's, numpy's and Python's own."""

import random

import numpy as np
import torch

from distrain.rng import Purpose, derive_seed


def seed_generators(seed: int, purpose: Purpose, *place: int) -> None:
    """Have what code of others draws next be a function of the seed and of where in the run that is, and nothing else.

    torch's generators of GPUs are left as they are.
    """
    value = derive_seed(seed, purpose, *place)
    torch.default_generator.manual_seed(value)
    np.random.seed(value & 0xFFFF_FFFF)
    random.seed(value)
