"""Chooses deterministic kernels where the recipe asks for them, and seeds what the network draws in a step."""

import os

import torch

from distrain.config import Recipe
from distrain.global_rng import seed_generators
from distrain.rng import Purpose, derive_seed


def set_determinism(recipe: Recipe) -> None:
    """Choose deterministic or fastest kernels, as the recipe says; before anything is built."""
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003 - its usual form
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its module
    torch.backends.cudnn.benchmark = not recipe.train.deterministic
    torch.autograd.set_detect_anomaly(recipe.train.detect_anomaly)


def seed_model_draws(seed: int, step: int, micro_batch: int, gpus: range, *, is_own: bool) -> None:
    """Seed what the network draws, such as dropout, as a function of (seed, step, micro-batch) and nothing else.

    Where it or the loss is the user's own, it may draw from numpy and from Python as well.
    """
    value = derive_seed(seed, Purpose.MODEL_DRAW, step, micro_batch)
    if is_own:
        seed_generators(seed, Purpose.MODEL_DRAW, step, micro_batch)
    else:  # a hundredth of the time of torch.manual_seed, which asks all backends
        torch.default_generator.manual_seed(value)
    for gpu in gpus:
        torch.cuda.default_generators[gpu].manual_seed(value + gpu - gpus[0])
