"""Builds the parallel strategy of a recipe."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import nn

from distrain.config import Recipe
from distrain.config.batching import Batching
from distrain.data.loading.sampler import TrainSampler
from distrain.distributed.ddp import Ddp
from distrain.distributed.exact import Exact
from distrain.distributed.extra_state import ExtraState
from distrain.distributed.flat_all_reduce import FlatAllReduce, fits_in_one
from distrain.distributed.single import SingleProcess
from distrain.distributed.strategy import Strategy
from distrain.distributed.unused_parameters import excluded
from distrain.distributed.world import World
from distrain.errors import RecipeError
from distrain.tensors.autocast import DTYPES

log = logging.getLogger(__name__)

__all__ = ["Strategy", "build_strategy"]


def build_strategy(
    recipe: Recipe,
    module: nn.Module,
    world: World,
    *,
    batching: Batching,
    example: torch.Tensor,
    extra: ExtraState | None = None,
    idle: Sequence[str] = (),
) -> Strategy:
    """Return the strategy of a recipe for this world; `extra` is the extra state of network and loss.

    `example` is a small input batch of the network. `idle` names the weights on which the loss does not depend, if
    `needs_unused_parameters` returns True.
    """
    if world.num_devices > 1:
        sizes = torch.arange(batching.micro_batch_size).chunk(world.num_devices)
        log.info(
            "each micro-batch of %d is split over %d GPUs: %s",
            batching.micro_batch_size,
            world.num_devices,
            " + ".join(str(len(part)) for part in sizes),
        )
    with excluded(module, idle):
        if recipe.train.exact:
            return Exact(module, world, batching, extra=extra)
        if recipe.parallel.sync_batchnorm and world.size > 1:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        dtype = DTYPES[recipe.precision]
        if recipe.parallel.strategy == "fsdp":
            return _fsdp(module, world, example, dtype, extra=extra)
        return STRATEGIES[recipe.parallel.strategy](module, world, example, dtype)


def needs_unused_parameters(recipe: Recipe, world: World) -> bool:
    """Return whether the strategy must know beforehand which weights get no gradient.

    FSDP does not need it; exact mode does in one process what it does in several.
    """
    return recipe.train.exact or (world.size > 1 and recipe.parallel.strategy != "fsdp")


def check_sync_batchnorm(recipe: Recipe, world: World, sampler: TrainSampler) -> None:
    """Raise `RecipeError` if `parallel.sync_batchnorm` cannot work: its ranks communicate in every forward pass."""
    if not recipe.parallel.sync_batchnorm:
        return
    if recipe.train.exact:
        log.info(
            "parallel.sync_batchnorm has no effect with train.exact: BatchNorm is the same there for every number of "
            "processes, over each micro-batch"
        )
        return
    if world.device.type == "cpu":
        raise RecipeError(
            "parallel.sync_batchnorm is available only on GPUs; on the CPU, train.exact=true makes BatchNorm the same "
            "for every number of processes"
        )
    if world.num_devices > 1:
        raise RecipeError(
            f"parallel.sync_batchnorm needs one process per GPU, and one has {world.num_devices}; give --gpus without "
            f"parallel.strategy=dp"
        )
    if sampler.global_batch(sampler.steps_per_epoch - 1).num_micro_batches % world.size:
        raise RecipeError(
            f"parallel.sync_batchnorm: the last batch of an epoch cannot be divided among {world.size} processes, "
            f"which would wait for each other; use --set data.drop_last=true"
        )


Dtype = torch.dtype | None  # of autocast; None: no autocast


def _auto(module: nn.Module, world: World, example: torch.Tensor, dtype: Dtype) -> Strategy:
    return FlatAllReduce(module, world) if fits_in_one(module, world) else _ddp(module, world, example, dtype)


def _ddp(module: nn.Module, world: World, example: torch.Tensor, dtype: Dtype) -> Strategy:
    if world.num_devices > 1:
        log.info("several GPUs in one process: DataParallel replaces DistributedDataParallel, which is faster")
    return _data_parallel(module, world, example, dtype) if world.size == 1 else Ddp(module, world)


def _data_parallel(module: nn.Module, world: World, _: torch.Tensor, dtype: Dtype) -> Strategy:
    if world.size > 1:
        raise RecipeError(
            f"parallel.strategy=dp trains in one process, and {world.size} were started; "
            f"give --gpus without --procs, or use parallel.strategy=ddp"
        )
    return SingleProcess(module, num_devices=world.num_devices, dtype=dtype)


def _none(module: nn.Module, world: World, _: torch.Tensor, __: Dtype) -> Strategy:
    if world.size > 1 or world.num_devices > 1:
        raise RecipeError(
            f"parallel.strategy=none uses one device, and {max(world.size, world.num_devices)} were requested; "
            f"use parallel.strategy=auto"
        )
    return SingleProcess(module)


def _fsdp(
    module: nn.Module, world: World, example: torch.Tensor, dtype: Dtype, *, extra: ExtraState | None
) -> Strategy:
    from distrain.distributed.fsdp import Fsdp  # takes a second to import: only when needed

    # A single process has all shards anyway.
    return SingleProcess(module) if world.size == 1 else Fsdp(module, world, example, extra=extra, dtype=dtype)


STRATEGIES: dict[str, Callable[[nn.Module, World, torch.Tensor, Dtype], Strategy]] = {
    "auto": _auto,
    "ddp": _ddp,
    "dp": _data_parallel,
    "none": _none,
}
