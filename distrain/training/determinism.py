"""Selects deterministic kernels if the recipe requests them, and seeds the random numbers of the network."""

import os

import torch

from distrain.config import Recipe
from distrain.global_rng import seed_other_generators
from distrain.rng import Purpose, derive_seed


def set_determinism(recipe: Recipe) -> None:
    """Select deterministic or the fastest kernels, according to the recipe; call this before anything is built."""
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003 - its usual form
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its module
    torch.backends.cudnn.benchmark = not recipe.train.deterministic
    torch.autograd.set_detect_anomaly(recipe.train.detect_anomaly)


def seed_model_draws(seed: int, step: int, micro_batch: int, gpus: range, *, everywhere: bool) -> None:
    """Seed the random numbers of the network, such as dropout's, from (seed, step, micro-batch) and nothing else.

    With `everywhere`, also the generators of NumPy and Python, which the user's code may use.
    """
    value = derive_seed(seed, Purpose.MODEL_DRAW, step, micro_batch)
    torch.default_generator.manual_seed(value)  # 100 times faster than torch.manual_seed, which seeds all backends
    if everywhere:
        seed_other_generators(value)
    for gpu in gpus:
        torch.cuda.default_generators[gpu].manual_seed(value + gpu - gpus[0])
