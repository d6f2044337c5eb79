"""Every strategy trains a compiled network as it trains a plain one, BatchNorm's statistics included."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from distrain.config import load_recipe
from distrain.config.batching import solve_batching
from distrain.data.loading.epoch_order import uniform_order
from distrain.data.loading.sampler import TrainSampler
from distrain.distributed.compile import compile_network
from distrain.distributed.parallelize import build_strategy
from distrain.distributed.world import World
from distrain.training.device.precision import to_device
from tests.processes import run_ranks

SIZE, STEPS = 4, 3
SAMPLES = torch.randn(4 * SIZE * STEPS - 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(features)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(3, 4), Block(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(images).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def train(world: World, net: nn.Module, compute: str, strategy: str) -> list[torch.Tensor]:
    """Train a few steps of two micro-batches a rank, the last of them smaller, and return all weights and buffers."""
    recipe = load_recipe("digits", overrides=[f"compute={compute}", f"parallel.strategy={strategy}"])
    batching = solve_batching(4 * SIZE, SIZE, world.size)
    order = TrainSampler(
        num_samples=len(SAMPLES),
        sampler=partial(uniform_order, num_samples=len(SAMPLES), seed=0),
        batching=batching,
        drop_last=False,
        rank=world.rank,
    )
    net = to_device(net, recipe, world.device)
    compile_network(recipe, net, world, micro_batch_size=SIZE, num_micro_batches=2, processes=world.size)
    parallel = build_strategy(recipe, net, world, batching=batching, example=SAMPLES[:2])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, foreach=True)
    chosen = order.micro_batches(range(STEPS))
    for step in range(STEPS):
        global_batch = order.global_batch(step)
        replica = parallel.begin_step(global_batch, step)
        for index in global_batch.local:
            images = SAMPLES[next(chosen).indices].contiguous(memory_format=torch.channels_last)
            with parallel.micro_batch(global_batch, index):
                share = len(images) * parallel.loss_scale / global_batch.num_samples
                (replica(images).square().mean() * share).backward()
        parallel.finish_step(global_batch, step)
        optimizer.step()
        parallel.zero_grad()
    whole = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in net.state_dict().items()}
    return [tensor.detach().clone() for tensor in whole.values()]


def compare(world: World, compute: str, strategy: str) -> None:
    # The graphs are those of the compiler; only the machine code is left out, which takes a minute to make.
    torch.compile = partial(torch.compile, backend="aot_eager")
    torch.manual_seed(0)
    net = Net()
    plain = train(world, copy.deepcopy(net), "{compile: none}", strategy)
    quick = train(world, net, compute, strategy)
    for ours, theirs in zip(quick, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("compute", "strategy"),
    [
        ("{compile: whole, memory_format: channels_last}", "ddp"),
        pytest.param("{compile: regional, memory_format: channels_last}", "ddp", marks=pytest.mark.slow),
        ("{compile: regional, memory_format: channels_last}", "fsdp"),
    ],
)
def test_compiled_network_trains_as_a_plain_one(tmp_path: Path, compute: str, strategy: str) -> None:
    run_ranks(compare, tmp_path, 2, compute, strategy)
