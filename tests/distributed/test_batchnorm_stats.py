"""Ranks keep their buffers equal in few calls: constants stay where they are, and what changes travels together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distrain.data.loading.sampler import GlobalBatch
from distrain.distributed.ddp import Ddp
from distrain.distributed.flat_all_reduce import FlatAllReduce
from distrain.distributed.fsdp import Fsdp
from distrain.distributed.strategy import Strategy
from distrain.distributed.world import World
from tests.processes import run_ranks

LATE = 3  # the step in which a buffer changes first


class Tables(nn.Module):
    """A network with twelve constants, and with buffers that change: always, through `.data`, and late."""

    number: torch.Tensor
    queue: torch.Tensor
    is_late: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        for number in range(12):
            self.register_buffer(f"table_{number}", torch.arange(1000))
        self.register_buffer("number", torch.zeros((), dtype=torch.int64))
        self.register_buffer("queue", torch.zeros(3, dtype=torch.bfloat16))
        self.register_buffer("is_late", torch.zeros(2, dtype=torch.bool))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.number.add_(1 + dist.get_rank())
        self.queue.data.add_(1 + dist.get_rank())
        if int(self.number) >= LATE + 2 and dist.get_rank() == 1:
            self.is_late[0] = True
        return self.linear(features)  # type: ignore[no-any-return]


class Calls:
    """Counts the bytes of each collective call."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def count(self, name: str) -> None:
        call: Callable[..., Any] = getattr(dist, name)

        def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.seen.append((name, tensor.nbytes))
            return call(tensor, *args, **kwargs)

        setattr(dist, name, counting)


def step(parallel: Strategy, global_batch: GlobalBatch, number: int) -> None:
    replica = parallel.begin_step(global_batch, number)
    for index in global_batch.local:
        with parallel.micro_batch(global_batch, index):
            replica(torch.ones(2, 4)).sum().backward()
    parallel.finish_step(global_batch, number)
    parallel.zero_grad()


def share(world: World) -> None:
    calls = Calls()
    for name in ("broadcast", "all_reduce"):
        calls.count(name)
    for strategy in (Ddp, FlatAllReduce, lambda net, world: Fsdp(net, world, torch.ones(2, 4))):
        torch.manual_seed(0)
        net = Tables()
        parallel = strategy(net, world)
        calls.seen.clear()
        global_batch = GlobalBatch(4, ((0, 2), (2, 4)), range(world.rank, world.rank + 1))
        for number in range(LATE + 2):
            step(parallel, global_batch, number)
            assert int(net.number) == number + 1  # rank 0's
            assert net.queue.tolist() == [number + 1.0] * 3
            assert not net.is_late.any()  # rank 1 alone has changed it
        sent = [num_bytes for name, num_bytes in calls.seen if name == "broadcast"]
        assert sent == [8 + 6] * LATE + [8 + 6 + 2] * 2


def average(world: World) -> None:
    """Take a step in which rank 1 has no work."""
    calls = Calls()
    calls.count("all_reduce")
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(10)))
    parallel = Ddp(net, world)
    replica = parallel.begin_step(GlobalBatch(2, ((0, 2),), range(1 - world.rank)), 0)
    if world.is_rank_zero:
        replica(torch.ones(2, 4)).sum().backward()
    calls.seen.clear()
    parallel.finish_step(GlobalBatch(2, ((0, 2),), range(1 - world.rank)), 0)
    assert calls.seen == [("all_reduce", 4 * 10 * 20)]
    gradients = [weight.grad for weight in net.parameters() if weight.grad is not None]
    assert gradients[-1].tolist() == [1.0] * 4


def test_only_buffers_that_change_travel_and_in_one_call(tmp_path: Path) -> None:
    run_ranks(share, tmp_path, 2)


def test_gradients_of_an_uneven_step_are_averaged_in_one_call(tmp_path: Path) -> None:
    run_ranks(average, tmp_path, 2)
