"""The flat reduction gives what DistributedDataParallel gives, whatever a step is made of."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distrain.config.batching import Batching
from distrain.data.loading.epoch_order import uniform_order
from distrain.data.loading.sampler import GlobalBatch, TrainSampler
from distrain.distributed.ddp import Ddp
from distrain.distributed.flat_all_reduce import FlatAllReduce
from distrain.distributed.parallelize import STRATEGIES
from distrain.distributed.strategy import Strategy
from distrain.distributed.world import World
from distrain.models.freezing import Freezing
from tests.processes import run_ranks

IMAGES = torch.randn(40, 2, 4, 4, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(40) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def train(
    strategy: Strategy, world: World, *, micro_batch_size: int, unfreeze_steps: dict[str, float]
) -> list[torch.Tensor]:
    """Take eight steps on windows of 24 and 16 samples in turn, and return all weights and buffers."""
    batching = Batching(24, micro_batch_size, 0, world.size)
    sampler = partial(uniform_order, num_samples=40, seed=0)
    order = TrainSampler(num_samples=40, sampler=sampler, batching=batching, drop_last=False, rank=world.rank)
    batches = order.micro_batches(range(8))
    freezing = Freezing(strategy.module, unfreeze_steps)
    optimizer = torch.optim.SGD(strategy.module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(8):
        global_batch = order.global_batch(step)
        replica = strategy.begin_step(global_batch, step)
        freezing.begin_step(step)
        for index in global_batch.local:
            indices = torch.from_numpy(next(batches).indices)
            with strategy.micro_batch(global_batch, index):
                loss = F.cross_entropy(replica(IMAGES[indices]), TARGETS[indices])
                (loss * (len(indices) * strategy.loss_scale / global_batch.num_samples)).backward()  # type: ignore[no-untyped-call]
        strategy.finish_step(global_batch, step)
        with freezing.without_frozen_gradients(step):
            optimizer.step()
        strategy.zero_grad()
    return [tensor.clone() for tensor in strategy.module.state_dict().values()]


def compare(world: World, cases: list[tuple[int, dict[str, float]]]) -> None:
    for micro_batch_size, unfreeze_steps in cases:
        results = [
            train(strategy(network(), world), world, micro_batch_size=micro_batch_size, unfreeze_steps=unfreeze_steps)
            for strategy in (Ddp, FlatAllReduce, FlatAllReduce)
        ]
        for ddp, flat, again in zip(*results, strict=True):
            torch.testing.assert_close(flat, ddp)
            assert torch.equal(flat, again)
            assert world.size == 3 or torch.equal(flat, ddp)  # to halve before or after the sum is the same


HALF_FROZEN = {"0.weight": 3.0, "0.bias": 3.0, "1.weight": 5.0, "1.bias": 5.0}


@pytest.mark.parametrize(
    ("processes", "cases"),
    [
        (2, [(4, {}), (24, {}), (12, HALF_FROZEN)]),  # several pieces a rank; one and none; layers that thaw
        (3, [(8, {})]),  # three pieces and two: in every other window rank 2 has none
    ],
)
def test_flat_reduction_trains_as_ddp_does(
    tmp_path: Path, processes: int, cases: list[tuple[int, dict[str, float]]]
) -> None:
    run_ranks(compare, tmp_path, processes, cases)


def start_apart(world: World) -> None:
    torch.manual_seed(world.rank)
    weights = FlatAllReduce(nn.Linear(4, 4), world).module.get_parameter("weight").detach().clone()
    assert torch.equal(world.all_reduce(weights.clone()), 2 * weights)


def leave_one_out(world: World) -> None:
    used, unused = nn.Linear(2, 1), nn.Linear(2, 1)
    strategy = FlatAllReduce(nn.ModuleList([used, unused]), world)
    global_batch = GlobalBatch(2, ((0, 1), (1, 2)), range(world.rank, world.rank + 1))
    for _ in range(2):
        strategy.begin_step(global_batch, 0)
        used(torch.ones(1, 2)).sum().backward()
        strategy.finish_step(global_batch, 0)
        assert [gradient.tolist() for gradient in gradients(used)] == [[[1.0, 1.0]], [1.0]]
        assert not any(gradient.any() for gradient in gradients(unused))
        strategy.zero_grad()


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [weight.grad for weight in module.parameters() if weight.grad is not None]


def choose(world: World) -> None:
    small, large, double = nn.Linear(4, 4), nn.Linear(512, 513), nn.Linear(4, 4).double()
    frozen = nn.Sequential(nn.Linear(512, 513).requires_grad_(False), nn.Linear(4, 4))
    chosen = [type(STRATEGIES["auto"](module, world, IMAGES, None)) for module in (small, large, double, frozen)]
    assert chosen == [FlatAllReduce, Ddp, Ddp, FlatAllReduce]
    assert type(STRATEGIES["ddp"](nn.Linear(4, 4), world, IMAGES, None)) is Ddp


def start_choose_and_reduce(world: World) -> None:
    start_apart(world)
    leave_one_out(world)
    choose(world)


def test_ranks_start_alike_auto_is_flat_for_small_networks_and_a_weight_without_use_has_gradient_0(
    tmp_path: Path,
) -> None:
    run_ranks(start_choose_and_reduce, tmp_path, 2)
