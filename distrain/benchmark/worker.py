"""Measures on one rank: builds the session of a run and runs one timed section after another."""

import itertools
import logging
import time
from contextlib import closing

import torch

from distrain.benchmark import timed_sections
from distrain.benchmark.memory import MemoryWatch
from distrain.benchmark.results import BenchmarkResult, spread, write_figures
from distrain.benchmark.timed_sections import StoppedError, TimedSteps
from distrain.config import Recipe
from distrain.config.batching import count_steps_per_epoch
from distrain.config.profile import Profile
from distrain.data.loading.loader import read_batches
from distrain.distributed.fsdp import Fsdp
from distrain.distributed.world import World
from distrain.errors import DataError
from distrain.messages import counted
from distrain.runs.directory import RunDirectory
from distrain.runs.task import BenchmarkRequest
from distrain.system.files import write_atomically
from distrain.training.build import build_session
from distrain.training.determinism import set_determinism
from distrain.training.device.micro_batch_size import memory_limit_bytes, try_micro_batch_sizes
from distrain.training.monitor import RankMonitor
from distrain.training.session import Session

log = logging.getLogger(__name__)


def run_benchmark(
    recipe: Recipe, profile: Profile, run: RunDirectory, request: BenchmarkRequest, world: World, monitor: RankMonitor
) -> bool:
    """Measure the request; returns False after a stop.

    Raises a `UserError` where recipe, data and network are incompatible.
    """
    set_determinism(recipe)
    session = build_session(recipe, profile, run, world, monitor, has_checkpoint=False)
    _check_every_rank_has_work(session)
    if request.least_samples is not None:  # raises before the measurement, not after it
        count_steps_per_epoch(len(session.train_reader.source), request.least_samples, drop_last=True)
    _report_start(session)
    try:
        with session.checkpointer:
            result = _measure(session, request)
    except StoppedError:
        monitor.report("stopped")
        return False
    if world.is_rank_zero:
        write_figures(run, result)
    monitor.report("finished")
    return True


def _check_every_rank_has_work(session: Session) -> None:
    if session.sampler.global_batch(0).num_micro_batches < session.world.size:
        raise DataError(
            f"{counted(session.sampler.num_samples, 'training sample')} cannot give each of {session.world.size} "
            f"processes a micro-batch of a step, so there is nothing to measure; measure fewer "
            "processes, or use a smaller data.batch_size"
        )


def _measure(session: Session, request: BenchmarkRequest) -> BenchmarkResult:
    world, batching = session.world, session.sampler.batching
    _announce(session, "first steps")
    reading = read_batches(
        session.train_reader,
        session.sampler.micro_batches(itertools.count()),
        num_workers=session.recipe.data.num_workers,
        loader=session.recipe.data.loader,
        device=world.device,
    )
    with closing(reading) as batches:
        timed_steps = TimedSteps(session, batches)
        timed_steps.run(1)
        began = time.time()
        watch = MemoryWatch(session)
        timed_steps.run(2)  # in the second one the optimizer's state exists from the start
        memory = watch.read()
        step_s = timed_steps.warm_up(request)
        num_steps = timed_sections.plan_steps(request, step_s)
        _announce(session, "steps")
        world.barrier()
        seconds, rates = [], []
        for length in timed_sections.split_blocks(num_steps):
            first, taken = timed_steps.step, timed_steps.run(length)
            seconds.append(taken / length)
            rates.append(session.num_samples(first, timed_steps.step) / taken)
        parts = None
        if request.has_parts:
            _announce(session, "parts of a step")
            parts = timed_steps.profile(max(2, num_steps // 2))
    result = BenchmarkResult(
        processes=world.size * world.num_devices,
        device=str(session.numerics_fingerprint()["device"]),
        threads=session.profile.threads,
        num_workers=session.recipe.data.num_workers,
        global_batch_size=batching.global_batch_size,
        micro_batch_size=batching.micro_batch_size,
        accumulation=batching.accumulation,
        num_train_samples=len(session.train_reader.source),
        num_val_samples=len(session.val_reader.source),
        steps_per_epoch=session.sampler.steps_per_epoch,
        began=began,
        step_s=spread(seconds if len(seconds) > 1 else seconds * 2, steps=num_steps // len(seconds)),
        images_per_s=sorted(rates)[len(rates) // 2],
        memory=memory,
        parts_s=parts,
        unforeseen=session.unforeseen,
    )
    return _measure_around(session, request, result, num_steps=num_steps, next_step=timed_steps.step)


def _measure_around(
    session: Session, request: BenchmarkRequest, result: BenchmarkResult, *, num_steps: int, next_step: int
) -> BenchmarkResult:
    """Measure everything that needs no batches of the run; the part that changes the weights of one rank comes last."""
    if session.world.size > 1:
        _announce(session, "reduction")
    result.communication = timed_sections.communication(session)
    if request.has_parts:
        _announce(session, "loader alone")
        result.loader_images_per_s = timed_sections.loader_rate(session, request, next_step)
    if request.has_evaluation:
        _announce(session, "evaluation")
        result.evaluation_images_per_s = timed_sections.evaluation_rate(session, request)
    if request.has_checkpoint:
        _announce(session, "checkpoint")
        result.saving = timed_sections.saving(session, next_step)
    if request.has_parts:
        _announce(session, "compute alone")
        compute_s = timed_sections.compute_step_s(session, num_steps)
        result.compute_images_per_s = result.global_batch_size / compute_s
        result.lone_step_s = timed_sections.lone_step_s(session, num_steps)
        if result.communication is not None and result.lone_step_s is not None:
            result.communication.exposed_s = max(0.0, compute_s - result.lone_step_s)
    if request.largest_micro_batch is not None:
        _announce(session, "largest micro-batch")
        _find_largest_micro_batch(session, request.largest_micro_batch, result)
    return result


def _find_largest_micro_batch(session: Session, largest: int, result: BenchmarkResult) -> None:
    world = session.world
    if isinstance(session.strategy, Fsdp) or world.num_devices > 1:
        result.notes.append(
            "the largest micro-batch is not known: it is tried on one device, not as parallel.strategy=fsdp or dp"
        )
        return
    if session.unwrapped_copy is None:
        result.notes.append("the largest micro-batch is not known: the network cannot be copied, as trying it needs")
        return
    micro_batches = session.sampler.micro_batches([0])
    images, targets = next(
        iter(read_batches(session.train_reader, micro_batches, num_workers=0, device=torch.device("cpu")))
    )
    network = session.unwrapped_copy
    for copied, parameter in zip(network.parameters(), session.model.parameters(), strict=True):
        copied.requires_grad_(parameter.requires_grad)  # frozen weights have no gradients
    found = try_micro_batch_sizes(
        session.recipe,
        network,
        (images[:8], targets[:8]),
        largest=largest,
        limit_bytes=memory_limit_bytes(world, processes=session.profile.processes),
        prepare=session.prepare,
        losses=session.task.loss,
        world=world,
    )
    result.largest_micro_batch = world.min_over_ranks(found)


def _announce(session: Session, stage: str) -> None:
    """Announce what is measured next, and end the measurement after a stop request."""
    if session.world.is_rank_zero:
        write_atomically(session.run.stage, stage)
    timed_sections.raise_if_stopped(session)


def _report_start(session: Session) -> None:
    """Report the end of start-up; measured steps do not count as steps of a run."""
    monitor = session.monitor
    monitor.state.load(session.run.read_status())
    monitor.state.begin_attempt(world_size=session.world.size)
    monitor.state.phase = "measure"
    monitor.report_start()
    monitor.report("running")
