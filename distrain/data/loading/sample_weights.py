"""Asks the user's function for the weight of each training sample, in proportion to which it is drawn."""

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrain.config import Data
from distrain.config.user_code import load_factory, load_reference
from distrain.data.sources.base import Source
from distrain.errors import RecipeError
from distrain.global_rng import seed_generators
from distrain.messages import counted
from distrain.rng import Purpose
from distrain.system.exits import place_of_code


def read_weights(config: Data, source: Source, *, seed: int) -> NDArray[np.float64]:
    """Return the weights of all samples, float64 [n], none below 0, from `data.sampling=package.module:function`.

    The function is called with the targets, a copy as an array: int64 [n] of classes, float32 [n, outputs] of labels
    and values. One that has a parameter `samples` also gets the names of the samples, such as their paths. Raises
    `RecipeError` where it is not such a function, or returns anything else than weights.
    """
    name = config.sampling
    arguments = dict(config.sampling_arguments)
    if "samples" not in arguments and _asks_for_samples(load_reference(name, key="data.sampling")):
        arguments["samples"] = [source.describe(index) for index in range(len(source))]
    function = load_factory(name, arguments, key="data.sampling", given=("targets",))
    seed_generators(seed, Purpose.ORDER)  # so that one that draws random numbers gives the same weights on every rank
    found = function(source.targets.numpy().copy(), **arguments)
    place = place_of_code(function)
    try:
        weights = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise RecipeError(f"data.sampling={name} returns {found!r:.60}{place}, not a number for each sample") from None
    if weights.shape != (len(source),):
        raise RecipeError(
            f"data.sampling={name} returns an array {list(weights.shape)}{place}; return a number for each of "
            f"{counted(len(source), 'sample')}"
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise RecipeError(
            f"data.sampling={name} returns weights that are not finite, negative, or all 0{place}; return numbers "
            f">= 0, some above 0"
        )
    return weights


def _asks_for_samples(function: Any) -> bool:
    try:
        return "samples" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function written in C may have no signature
        return False
