"""One process trains through DataParallel as it does without, and keeps the network's own names."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from distrain.config import load_recipe
from distrain.config.batching import solve_batching
from distrain.data.loading.epoch_order import uniform_order
from distrain.data.loading.sampler import GlobalBatch, TrainSampler
from distrain.distributed.parallelize import build_strategy
from distrain.distributed.single import SingleProcess
from distrain.distributed.world import World
from distrain.errors import RecipeError

CPU = torch.device("cpu")


def gradients(strategy: SingleProcess, images: torch.Tensor) -> list[torch.Tensor]:
    sampler = partial(uniform_order, num_samples=8, seed=0)
    order = TrainSampler(num_samples=8, sampler=sampler, batching=solve_batching(8, 4, 1), drop_last=False, rank=0)
    global_batch = order.global_batch(0)
    replica = strategy.begin_step(global_batch, 0)
    for index in global_batch.local:
        with strategy.micro_batch(global_batch, index):
            replica(images[index * 4 :][:4]).square().mean().backward()
    strategy.finish_step(global_batch, 0)
    return [p.grad.clone() for p in strategy.module.parameters() if p.grad is not None]


def test_data_parallel_gives_the_gradients_of_the_network_itself_and_its_names() -> None:
    module = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    images = torch.randn(8, 5)
    plain = gradients(SingleProcess(module), images)
    module.zero_grad()
    split = SingleProcess(module, num_devices=2)
    assert all(torch.equal(a, b) for a, b in zip(gradients(split, images), plain, strict=True))
    assert not any(name.startswith("module.") for name in split.module.state_dict())
    split.zero_grad()
    assert all(parameter.grad is None for parameter in module.parameters())


def test_threads_of_data_parallel_compute_in_the_dtype_of_the_recipe() -> None:
    world = World(rank=0, size=1, local_rank=0, device=CPU, num_devices=2)
    recipe = load_recipe("digits", overrides=["parallel.strategy=dp", "precision=fp16"])
    global_batch = GlobalBatch(2, ((0, 2),), range(1))
    strategy = build_strategy(
        recipe, nn.Linear(2, 2), world, batching=solve_batching(64, None, 1), example=torch.zeros(1, 2)
    )
    replica = strategy.begin_step(global_batch, 0).module
    assert isinstance(replica, nn.Module)

    def call() -> torch.dtype:
        with torch.autocast("cpu"):  # all that torch hands on to a thread: that it is on, with its default dtype
            return replica(torch.zeros(1, 2)).dtype  # type: ignore[no-any-return]

    with torch.autocast("cpu", torch.float16), ThreadPoolExecutor(1) as thread:
        assert thread.submit(call).result() == torch.float16


@pytest.mark.parametrize("strategy", ["dp", "none"])
def test_strategy_of_one_process_refuses_several(strategy: str) -> None:
    recipe = load_recipe("digits", overrides=[f"parallel.strategy={strategy}"])
    world = World(rank=0, size=2, local_rank=0, device=CPU)
    with pytest.raises(RecipeError, match=f"parallel.strategy={strategy}"):
        build_strategy(recipe, nn.Linear(2, 2), world, batching=solve_batching(64, None, 2), example=torch.zeros(1, 2))
