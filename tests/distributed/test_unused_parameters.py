"""Weights on which no loss depends are left as they are, as in one process, however many processes train."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distrain.config.batching import Batching, solve_batching
from distrain.data.loading.sampler import GlobalBatch
from distrain.distributed.ddp import Ddp
from distrain.distributed.exact import Exact
from distrain.distributed.flat_all_reduce import FlatAllReduce
from distrain.distributed.single import SingleProcess
from distrain.distributed.strategy import Strategy
from distrain.distributed.unused_parameters import excluded, find_unused_parameters
from distrain.distributed.world import World
from distrain.errors import ModelError
from tests.processes import run_ranks

IMAGES = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
BATCHING = solve_batching(2, 1, 1)


class Net(nn.Module):
    """A layer that is left over, one that training leaves out at random, and two names for the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.left_over = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3).eval()
        self.moody = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)
        self.same_head = self.head
        self.is_moody = True

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.norm(self.conv(images)).mean(dim=(2, 3)) + torch.rand(())
        if not (self.training and self.is_moody):
            features = self.moody(features)
        return {"logits": self.head(features), "features": features.detach()}


class Recomputed(nn.Module):
    """A layer that is computed again in the backward pass, and stands in no graph before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.idle = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.Linear(1, 1, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.hidden, self.first(images), use_reentrant=True)  # type: ignore[no-any-return]


IDLE = ["left_over.weight", "left_over.bias"]


def test_what_nothing_depends_on_is_found_and_the_network_is_as_before() -> None:
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(5)
    assert find_unused_parameters(net, IMAGES) == IDLE
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert [module.training for module in (net, net.norm, net.head)] == [True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    net.norm.train()
    assert find_unused_parameters(net, IMAGES) == IDLE
    assert torch.equal(net.norm.get_buffer("running_mean"), before["norm.running_mean"])
    with torch.no_grad():
        assert find_unused_parameters(nn.Sequential(nn.Conv2d(1, 1, 3)), IMAGES) == []
    assert find_unused_parameters(Recomputed(), IMAGES) == ["idle.weight"]
    assert find_unused_parameters(nn.Sequential(nn.Flatten(), nn.ReLU()), IMAGES) == []


def train(make: Callable[[nn.Module], Strategy], world: World) -> dict[str, torch.Tensor]:
    """Take three steps of two micro-batches over all ranks with weight decay, and return the weights."""
    torch.manual_seed(0)
    net = Net()
    net.is_moody = False
    with excluded(net, find_unused_parameters(net, IMAGES)):
        strategy = make(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    pieces = range(2) if world.size == 1 else range(world.rank, world.rank + 1)
    global_batch = GlobalBatch(2, ((0, 1), (1, 2)), pieces)
    for step in range(3):
        replica = strategy.begin_step(global_batch, step)
        for index in global_batch.local:
            torch.manual_seed(10 * step + index)
            with strategy.micro_batch(global_batch, index):
                loss = replica(IMAGES[index : index + 1])["logits"].square().sum()
                (loss * strategy.loss_scale / 2).backward()
        strategy.finish_step(global_batch, step)
        optimizer.step()
        strategy.zero_grad()
    return {name: weight.detach().clone() for name, weight in net.named_parameters()}


def compare(world: World) -> None:
    alone = train(SingleProcess, World(rank=0, size=1, local_rank=0, device=world.device))
    torch.manual_seed(0)
    assert all(torch.equal(alone[name], Net().get_parameter(name)) is False for name in ("head.weight", "moody.bias"))
    strategies: list[Callable[[nn.Module], Strategy]] = [
        lambda net: Ddp(net, world),
        lambda net: FlatAllReduce(net, world),
        lambda net: Exact(net, world, Batching(2, 1, 0, world.size)),
    ]
    for make in strategies:
        together = train(make, world)
        assert all(torch.equal(together[name], alone[name]) for name in IDLE)
        for name, weight in together.items():
            torch.testing.assert_close(weight, alone[name])


def come_and_go(world: World) -> None:
    net = Net()
    net.is_moody = False
    with excluded(net, find_unused_parameters(net, IMAGES)):
        strategy = Ddp(net, world)
    net.is_moody = True
    global_batch = GlobalBatch(2, ((0, 1), (1, 2)), range(world.rank, world.rank + 1))
    replica = strategy.begin_step(global_batch, 6)
    with strategy.micro_batch(global_batch, world.rank):
        replica(IMAGES)["logits"].sum().backward()
    with pytest.raises(ModelError, match=rf"moody\.weight was not used in step 7 on rank {world.rank}"):
        strategy.finish_step(global_batch, 6)


def compare_and_come_and_go(world: World) -> None:
    compare(world)
    come_and_go(world)


def test_weights_without_a_loss_stay_as_they_are_on_two_processes(tmp_path: Path) -> None:
    run_ranks(compare_and_come_and_go, tmp_path, 2)


def test_weight_that_comes_into_use_later_ends_the_training_with_its_name() -> None:
    net = Net()
    with excluded(net, ["moody.weight", "moody.bias"]):
        strategy = Exact(net, World(rank=0, size=1, local_rank=0, device=torch.device("cpu")), BATCHING)
    replica = strategy.begin_step(GlobalBatch(2, ((0, 1), (1, 2)), range(2)), 0)
    replica(IMAGES)["logits"].sum().backward()
    net.is_moody = False
    with pytest.raises(ModelError, match=r"moody\.(weight|bias) is used in this step"):
        replica(IMAGES)["logits"].sum().backward()
