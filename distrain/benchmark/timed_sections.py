"""Times the sections of a measurement on one rank: whole steps, the loader alone, compute alone, saves and others.

All ranks call each function together, and raise `StoppedError` together after a stop request.
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext

import torch
from torch import nn

from distrain.benchmark.memory import gradient_bytes
from distrain.benchmark.phase_timer import PhaseClock, wait_for_device
from distrain.benchmark.results import Communication, Saving
from distrain.data.loading.loader import BatchReader, read_batches
from distrain.data.loading.processes import BATCHES_AHEAD
from distrain.data.loading.sampler import GlobalBatch
from distrain.data.sources.base import Batch, subset
from distrain.distributed.ddp import Ddp
from distrain.distributed.exact import Exact
from distrain.distributed.flat_all_reduce import FlatAllReduce
from distrain.distributed.world import World
from distrain.runs.checkpoints import read_catalog
from distrain.runs.task import BenchmarkRequest
from distrain.training.records import run_evaluation
from distrain.training.resume import save
from distrain.training.session import Session
from distrain.training.trainer import run_steps

NUM_BLOCKS = 10  # of a timed section: median and spread are computed over their values
MIN_STEPS, MAX_STEPS = 4, 1000
MIN_WARM_UP = 4
NUM_REDUCTIONS, NUM_PINGS = 15, 100


class StoppedError(Exception):
    """A stop was requested; every rank raises it at the same place."""


def raise_if_stopped(session: Session) -> None:
    """Raise `StoppedError` on all ranks if one of them has seen a stop request; counts as progress, too."""
    session.state.progress += 1
    if session.world.any_over_ranks(session.monitor.stop.poll_stop_request()):
        raise StoppedError


def broadcast_from_rank0(world: World, value: float) -> float:
    """Return rank 0's value on every rank."""
    return float(world.all_reduce(torch.tensor(value if world.is_rank_zero else 0.0, dtype=torch.float64)))


def sum_over_ranks(world: World, value: float) -> float:
    """Return the sum of all ranks' values."""
    return float(world.all_reduce(torch.tensor(value, dtype=torch.float64)))


class TimedSteps:
    """Runs consecutive steps on the batches of the recipe, with the loop of `distrain fit`."""

    def __init__(self, session: Session, batches: Iterator[Batch]) -> None:
        self.step = 0
        self._session = session
        self._batches = batches

    def run(self, num_steps: int) -> float:
        """Run `num_steps` steps and return their time in seconds, until the device has finished them."""
        session, first = self._session, self.step
        started = time.perf_counter()
        self.step = run_steps(session, self._batches, first, first + num_steps)
        if self.step < first + num_steps:
            raise StoppedError
        # Copies the losses to the host, like every record of a run, which waits for the device.
        session.losses.sync_losses(range(first, self.step))
        seconds = time.perf_counter() - started
        session.state.progress += 1
        return seconds

    def warm_up(self, request: BenchmarkRequest) -> float:
        """Run until kernels are chosen and batches read ahead are used up; returns the seconds per step."""
        session = self._session
        ahead = BATCHES_AHEAD * session.recipe.data.num_workers
        options = MIN_WARM_UP + -(-ahead // session.sampler.batching.accumulation)
        started, taken = time.perf_counter(), [self.run(1)]
        while len(taken) < options:
            taken.append(self.run(1))
            is_long = len(taken) >= 2 and time.perf_counter() - started > 2 * request.stretch_s
            if session.world.any_over_ranks(session.world.is_rank_zero and is_long):
                break
        return broadcast_from_rank0(session.world, min(taken[1:]))

    def profile(self, num_steps: int) -> dict[str, float]:
        """Run steps with a device synchronisation between phases; returns the seconds of each phase of a step."""
        session, first = self._session, self.step
        clock = PhaseClock(session.world)
        self.step = run_steps(session, clock.watched(self._batches), first, first + num_steps, progress=clock)
        clock.finish()
        if self.step < first + num_steps:
            raise StoppedError
        session.losses.sync_losses(range(first, self.step))
        return {name: seconds / num_steps for name, seconds in clock.seconds.items()}


def plan_steps(request: BenchmarkRequest, step_s: float) -> int:
    """Return the number of steps of a section, by the time of one; the same on all ranks, since `step_s` is."""
    if request.steps is not None:
        return request.steps
    return min(MAX_STEPS, max(MIN_STEPS, int(request.stretch_s / step_s)))


def split_blocks(num_steps: int) -> list[int]:
    """Return the number of steps in each block of a section."""
    blocks = min(NUM_BLOCKS, num_steps)
    return [num_steps // blocks] * blocks


def loader_rate(session: Session, request: BenchmarkRequest, first_step: int) -> float:
    """Return the images per second of all ranks' loaders alone, from `first_step` on."""
    world, workers = session.world, session.recipe.data.num_workers
    micro_batches = session.sampler.micro_batches(itertools.count(first_step))
    unused = max(1, workers)  # the first batch of each process includes its start
    min_batches = max(3, 2 * workers)  # batches arrive in bursts
    max_batches = (
        math.inf if request.steps is None else max(min_batches, request.steps * session.sampler.batching.accumulation)
    )
    loader = session.recipe.data.loader
    reading = read_batches(session.train_reader, micro_batches, num_workers=workers, device=world.device, loader=loader)
    with closing(reading) as batches:
        for _ in itertools.islice(batches, unused):
            session.state.progress += 1
        world.barrier()
        images = number = 0
        started = time.perf_counter()
        for _, targets in batches:
            images, number = images + len(targets), number + 1
            session.state.progress += 1
            is_long = time.perf_counter() - started > request.stretch_s
            if number >= max_batches or (number >= min_batches and is_long) or session.monitor.stop.is_requested:
                break
        wait_for_device(world.device)  # the last copies are part of the time
        seconds = time.perf_counter() - started
    raise_if_stopped(session)
    return sum_over_ranks(world, images / seconds)


def compute_step_s(session: Session, num_steps: int) -> float:
    """Return the median seconds of a full step on the same batch repeatedly."""
    step = 0  # only the last global batch of an epoch may be smaller
    micro_batches = session.sampler.micro_batches([step])
    kept = read_batches(session.train_reader, micro_batches, num_workers=0, device=session.world.device)
    batches = itertools.cycle(list(kept))
    seconds: list[float] = []
    for number, length in enumerate([1, *split_blocks(num_steps)]):  # the first warms up
        session.world.barrier()
        started = time.perf_counter()
        for _ in range(length):
            if run_steps(session, batches, step, step + 1) == step:
                break  # a stop: all ranks are informed below
        else:
            session.losses.sync_losses([step] * length)  # waits for the device, as in `TimedSteps.run`
        if number:
            seconds.append((time.perf_counter() - started) / length)
        raise_if_stopped(session)
    return broadcast_from_rank0(session.world, statistics.median(seconds))


class _NoReduction:
    """A strategy without reduction, to measure the cost of a step without other ranks."""

    name = "none"
    loss_scale = 1
    forward_is_collective = False

    def __init__(self, session: Session) -> None:
        self.module = session.model
        self._drop = session.strategy.zero_grad

    def begin_step(self, global_batch: GlobalBatch, step: int) -> nn.Module:  # noqa: ARG002 - the protocol's signature
        """Return the network itself, whose backward pass reduces nothing."""
        return self.module

    def micro_batch(self, global_batch: GlobalBatch, index: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return an empty context."""
        return nullcontext()

    def finish_step(self, global_batch: GlobalBatch, step: int) -> None:
        """Do nothing."""

    def zero_grad(self) -> None:
        """Reset the gradients as the real strategy does."""
        self._drop()

    def close(self) -> None:
        """Do nothing: the real strategy owns all resources."""


def lone_step_s(session: Session, num_steps: int) -> float | None:
    """Return `compute_step_s` without any reduction; None where the strategy needs it.

    The ranks' weights differ afterwards.
    """
    if session.world.size == 1 or not isinstance(session.strategy, Ddp | Exact | FlatAllReduce):
        return None
    return compute_step_s(dataclasses.replace(session, strategy=_NoReduction(session)), num_steps)


def communication(session: Session) -> Communication | None:
    """Return the time of an all-reduce of the gradients' size, and of one number; None for one process."""
    world, num_bytes = session.world, gradient_bytes(session)
    if world.size == 1:
        return None
    flat = torch.zeros(max(1, num_bytes // 4), device=world.device)
    return Communication(
        gradient_bytes=num_bytes,
        all_reduce_s=_reduction_s(session, flat, NUM_REDUCTIONS),
        latency_s=_reduction_s(session, flat[:1].clone(), NUM_PINGS),
    )


def _reduction_s(session: Session, tensor: torch.Tensor, repetitions: int) -> float:
    world = session.world
    seconds: list[float] = []
    for number in range(repetitions + 2):  # the first two connect the ranks
        wait_for_device(world.device)  # NCCL only queues work: times from an empty queue to an empty queue
        started = time.perf_counter()
        world.all_reduce(tensor)
        wait_for_device(world.device)
        if number >= 2:
            seconds.append(time.perf_counter() - started)
    raise_if_stopped(session)
    return broadcast_from_rank0(world, statistics.median(seconds))


def saving(session: Session, step: int) -> Saving:
    """Save twice, at `step` and the next one, and return the cost of the second save."""
    blocked: list[float] = []
    commit_s = 0.0
    for number in (step, step + 1):
        session.world.barrier()
        started = time.perf_counter()
        save(session, number, is_record_due=False)
        blocked.append(time.perf_counter() - started)
        session.checkpointer.wait()
        commit_s = time.perf_counter() - started
        session.state.phase = "measure"
        raise_if_stopped(session)
    entries = read_catalog(session.run.checkpoints) if session.world.is_rank_zero else []
    return Saving(
        num_bytes=int(broadcast_from_rank0(session.world, entries[-1].num_bytes if entries else 0)),
        blocked_s=broadcast_from_rank0(session.world, blocked[-1]),
        commit_s=broadcast_from_rank0(session.world, commit_s),
        first_blocked_s=broadcast_from_rank0(session.world, blocked[0]),
    )


def evaluation_rate(session: Session, request: BenchmarkRequest) -> float:
    """Return the validation images per second of all ranks, over as many as there is time for."""
    world, whole = session.world, session.val_reader.source
    batch_size = session.recipe.eval.batch_size
    is_in_memory = session.val_reader.is_in_memory  # then all of them are used
    images = len(whole) if is_in_memory else min(len(whole), world.size * batch_size)
    seconds = 0.0
    while True:
        some = session
        if not is_in_memory:
            part = subset(whole, torch.arange(images))
            reader = BatchReader(part, session.val_reader.transforms, seed=session.val_reader.seed)
            some = dataclasses.replace(session, val_reader=reader)
        seconds = _seconds(lambda some=some: run_evaluation(some), session)  # type: ignore[misc]  # bound above
        raise_if_stopped(session)
        # The start of an evaluation is a fixed cost, so the rate is measured over as many images as possible.
        longer = min(len(whole), int(images * request.stretch_s / seconds) // batch_size * batch_size)
        if longer < 2 * images:
            return images / seconds
        images = longer


def _seconds(work: Callable[[], object], session: Session) -> float:
    session.world.barrier()
    started = time.perf_counter()
    work()
    wait_for_device(session.world.device)
    return broadcast_from_rank0(session.world, time.perf_counter() - started)
