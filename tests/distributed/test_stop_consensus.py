"""All ranks stop before the same step, also where a reduction does not block the host: real gloo processes."""

import random
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store, TCPStore

from distrain.distributed.stop_consensus import StopConsensus
from distrain.distributed.world import World
from tests.cli_runner import wait_until
from tests.processes import run_ranks

STRETCH = 8  # steps between two boundaries, at which all ranks meet
STEP_S = 0.001


class FailingOnce:
    """A store whose every operation fails once before it works."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failed: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name not in self._failed:
            self._failed.add(name)
            raise RuntimeError(f"{name} fails this once")
        return getattr(self._store, name)


def with_store(world: World) -> World:
    """The world as it is in a run: with the store that all ranks see."""
    port = torch.zeros(1, dtype=torch.int64)
    if world.is_rank_zero:
        store = TCPStore("127.0.0.1", 0, world.size, is_master=True, wait_for_workers=False)
        port += store.port
    dist.broadcast(port, 0)
    if not world.is_rank_zero:
        store = TCPStore("127.0.0.1", int(port), world.size, is_master=False)
    return World(rank=world.rank, size=world.size, local_rank=world.rank, device=world.device, store=store)


def train(
    world: World, stop: StopConsensus, *, total_steps: int, lead: int, skipped: frozenset[int], rng: random.Random
) -> int:
    """Take steps as the engine does, with a host that leads its reductions by up to `lead`; returns the steps taken."""
    pending: deque[dist.Work] = deque()
    step = 0
    if stop.is_reached(step):
        return step
    while step < total_steps:
        boundary = min(step - step % STRETCH + STRETCH, total_steps)
        while step < boundary and not stop.is_reached(step):
            if step not in skipped:
                time.sleep(0.02 if rng.random() < 0.05 else STEP_S)  # a late batch, now and then
                work = dist.all_reduce(torch.ones(8), async_op=True)
                assert work is not None
                pending.append(work)
            while len(pending) > lead:
                pending.popleft().wait()
            step += 1
        while pending:
            pending.popleft().wait()
        assert int(world.all_reduce(torch.tensor(step))) == step * world.size  # settles the losses
        if rng.random() < 0.2:
            time.sleep(0.01)  # rank 0 writes a record, another one does not
        if stop.is_reached(step):
            world.barrier()  # saves
            return step
    return step


def take_turns(world: World, seed: int, leads: list[int], turns: int) -> None:
    world = with_store(world)
    shared = random.Random(seed)
    for turn in range(turns):
        for lead in leads:
            total_steps = shared.choice([30, 10_000])
            skipped = frozenset(range(5, 15)) | frozenset(shared.sample(range(400), 100))
            asking = {shared.randrange(world.size), shared.randrange(world.size)}
            after_s = shared.uniform(0, 0.1)  # of the short trainings, this is about the end
            begun = time.monotonic()

            def is_requested(begun: float = begun, asking: set[int] = asking, after_s: float = after_s) -> bool:
                return world.rank in asking and time.monotonic() - begun > after_s

            rng = random.Random(f"{seed} {turn} {lead} {world.rank}")
            with StopConsensus(world, is_requested, name=f"{turn}-{lead}") as stop:
                taken = train(world, stop, total_steps=total_steps, lead=lead, skipped=skipped, rng=rng)
            assert taken < 10_000
            steps = [torch.zeros((), dtype=torch.int64) for _ in range(world.size)]
            dist.all_gather(steps, torch.tensor(taken))
            assert len({int(step) for step in steps}) == 1


@pytest.mark.parametrize("lead", [0, 3, 10])
def test_all_ranks_stop_before_the_same_step_however_far_a_host_leads_its_reductions(tmp_path: Path, lead: int) -> None:
    run_ranks(take_turns, tmp_path, 3, lead, [lead], 4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_all_ranks_stop_before_the_same_step_soak(tmp_path: Path, seed: int) -> None:
    run_ranks(take_turns, tmp_path, 4, seed, [0, 1, 3, 10, 30], 40)


def survive(world: World) -> None:
    world = with_store(world)
    assert world.store is not None
    failing = World(
        rank=world.rank,
        size=world.size,
        local_rank=world.rank,
        device=world.device,
        store=FailingOnce(world.store),  # type: ignore[arg-type]  # it is used as a store
    )
    with StopConsensus(failing, lambda: True, name="stop") as stop:
        step = 0
        while not stop.is_reached(step):
            world.barrier()
            step += 1
    assert int(world.all_reduce(torch.tensor(step))) == step * world.size


def test_stop_thread_survives_a_store_that_fails_now_and_then(tmp_path: Path) -> None:
    run_ranks(survive, tmp_path, 2)


def test_held_rank_whose_store_is_lost_fails_instead_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrain.distributed.stop_consensus._STORE_TIMEOUT_S", 0.3)
    store = HashStore()
    world = World(rank=0, size=2, local_rank=0, device=torch.device("cpu"), store=store)
    posted = "distrain/stop/next-step/0"
    with (
        pytest.raises(ConnectionError, match="no stop step is known"),
        StopConsensus(world, lambda: True, name="stop") as stop,
    ):
        wait_until(lambda: store.check([posted]), "the hold")  # rank 1 is not there and never posts
        monkeypatch.setattr(type(stop), "_advance", lambda self: self.no_longer_there)
        stop.is_reached(0)


def test_one_process_gives_the_same_answer_to_the_same_question() -> None:
    requested = False
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    with StopConsensus(world, lambda: requested, name="stop") as stop:
        assert not stop.is_reached(7)
        requested = True
        assert not stop.is_reached(7)
        assert stop.is_reached(8)
