"""Parallel strategies: each makes the ranks' work on one step one and the same update."""

from collections.abc import Callable

import torch
from torch import nn

from distrain.batching import Batching
from distrain.parallel.ddp import Ddp
from distrain.parallel.exact import Exact
from distrain.parallel.protocol import Parallel
from distrain.parallel.single import Single
from distrain.recipe import Recipe
from distrain.world import World

__all__ = ["Parallel", "build_parallel"]


def build_parallel(
    recipe: Recipe, module: nn.Module, world: World, *, batching: Batching, example: torch.Tensor
) -> Parallel:
    """Return the strategy of a recipe for this world; `example` is a small batch as the network gets it."""
    if recipe.train.exact:
        return Exact(module, world, batching)
    return STRATEGIES[recipe.parallel.strategy](module, world, example)


def _auto(module: nn.Module, world: World, _: torch.Tensor) -> Parallel:
    return Single(module) if world.size == 1 else Ddp(module, world)


def _fsdp(module: nn.Module, world: World, example: torch.Tensor) -> Parallel:
    from distrain.parallel.fsdp import Fsdp  # takes a second to import: only where it is used

    return Single(module) if world.size == 1 else Fsdp(module, world, example)  # one process has all parts anyway


STRATEGIES: dict[str, Callable[[nn.Module, World, torch.Tensor], Parallel]] = {
    "auto": _auto,
    "ddp": _auto,
    "fsdp": _fsdp,
}
