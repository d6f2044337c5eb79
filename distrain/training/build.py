"""Builds the session from the recipe: all parts of training, the same on every rank."""

import logging
from contextlib import nullcontext
from dataclasses import replace

import torch

from distrain.checkpoint.writer import Checkpointer
from distrain.config import Recipe
from distrain.config.intervals import Intervals
from distrain.config.profile import Profile
from distrain.config.task import CLASSIFICATION
from distrain.config.user_code import is_reference
from distrain.distributed.compile import compile_network
from distrain.distributed.extra_state import ExtraState
from distrain.distributed.parallelize import build_strategy, needs_unused_parameters
from distrain.distributed.recompute import recompute_blocks
from distrain.distributed.stop_consensus import StopConsensus
from distrain.distributed.unused_parameters import find_unused_parameters
from distrain.distributed.world import World
from distrain.errors import RecipeError
from distrain.models.freezing import Freezing
from distrain.runs.directory import RunDirectory
from distrain.tensors.preserve_state import preserve_state
from distrain.training.device.micro_batch_size import (
    memory_limit_bytes,
    resolve_micro_batch_size,
    try_micro_batch_sizes,
)
from distrain.training.device.precision import Precision, set_tf32, to_device
from distrain.training.early_warnings import warn_early
from distrain.training.machine.flops import peak_share_of_sample
from distrain.training.machine.sampler import MachineSampler
from distrain.training.meters import LossMeter, ThroughputMeter
from distrain.training.monitor import RankMonitor
from distrain.training.optim.averages import build_average
from distrain.training.optim.clipping import build_clipping
from distrain.training.optim.optimizer import build_optimizer
from distrain.training.optim.param_groups import ParamGroupOptions, plan_param_groups
from distrain.training.optim.schedules import build_schedule
from distrain.training.optim.weight_averaging import LookaheadWeights
from distrain.training.own_code import may_draw_anywhere, refusing
from distrain.training.profiler import Profiler
from distrain.training.session import SAMPLING, Session
from distrain.training.setup.checks import ON_CPU, ON_DEVICE, WITH_MICRO_BATCH, Parts, run_checks
from distrain.training.setup.data import DataSetup, build_train_sampler, set_up_data
from distrain.training.setup.loss import set_up_loss
from distrain.training.setup.network import set_up_network
from distrain.training.setup.task import describe_task, try_task
from distrain.training.skipped_steps import SkippedSteps
from distrain.training.step_watch import Watch
from distrain.training.tasks.build import TaskCalls, bind, build_task, losses_of
from distrain.training.unsaved import report_unsaved

log = logging.getLogger(__name__)


def build_session(
    recipe: Recipe,
    profile: Profile,
    run: RunDirectory,
    world: World,
    monitor: RankMonitor,
    *,
    has_checkpoint: bool,
) -> Session:
    """Build everything that training needs; batches that the monitor's state lists as skipped are skipped.

    With `has_checkpoint`, the initial weights of the recipe are not loaded, because a checkpoint replaces them.
    Raises a `UserError` if recipe, data and network do not match.
    """
    data = set_up_data(recipe, profile, world)
    loss = set_up_loss(recipe, data, world)
    network = set_up_network(recipe, data, world, is_new=not has_checkpoint)
    setup = describe_task(recipe, data, loss, network, world)
    with nullcontext() if recipe.task.name == CLASSIFICATION else world.rank_zero_first():  # it may download weights
        task = build_task(setup)
    parts = Parts(
        recipe,
        world,
        data,
        loss,
        network,
        task,
        Precision(recipe.precision, world.device),
        is_new=not has_checkpoint,
    )
    run_checks(ON_CPU, parts)
    if parts.is_new:
        lengths = {"steps_per_epoch": data.sampler.steps_per_epoch, "total_steps": data.total_steps}
        for sentence in warn_early(recipe, data.sources, **lengths):
            log.warning("%s", sentence)
    example = data.sample_images.cpu()
    with refusing(example, name=recipe.model.name):  # layer_decay passes it to the network
        settings = plan_param_groups(recipe.optimizer, network.model, heads=network.heads, example=example)
    if recipe.train.micro_batch_size == "auto":
        parts = replace(parts, data=_with_found_micro_batch_size(profile, run, parts))
    run_checks(WITH_MICRO_BATCH, parts)
    set_tf32(recipe, world.device)
    parts = replace(parts, network=replace(network, model=to_device(network.model, recipe, world.device)))
    run_checks(ON_DEVICE, parts)
    form = try_task(parts.task, recipe, parts.network.model, parts.data, parts.precision, world)
    return _assemble(profile, run, monitor, parts, bind(parts.task, form, setup), settings)


def _assemble(
    profile: Profile,
    run: RunDirectory,
    monitor: RankMonitor,
    parts: Parts,
    task: TaskCalls,
    settings: dict[str, ParamGroupOptions],
) -> Session:
    """Wrap the network for its strategy, and build the parts that need its weights."""
    recipe, world, data, loss, precision = parts.recipe, parts.world, parts.data, parts.loss, parts.precision
    network, model, sampler = parts.network, parts.network.model, parts.data.sampler
    with precision.autocast():
        unsaved = report_unsaved(
            recipe,
            model,
            loss.function,
            data.sample_images[:2],
            data.first[1][:2].to(world.device),
            num_classes=data.num_classes,
        )
        idle = find_unused_parameters(model, data.sample_images[:2]) if needs_unused_parameters(recipe, world) else []
    share = peak_share_of_sample(recipe, model, data.sample_images[:2], world) if world.is_rank_zero else None
    compilation = compile_network(
        recipe,
        model,
        world,
        micro_batch_size=sampler.batching.micro_batch_size,
        num_micro_batches=len(sampler.global_batch(0).local),
        processes=profile.processes,
    )
    with precision.autocast():
        recompute_blocks(recipe, model, world, data.sample_images[:2])
    extra = ExtraState(model, loss.function, device=world.device)
    strategy = build_strategy(
        recipe, model, world, batching=sampler.batching, example=data.sample_images, extra=extra, idle=idle
    )
    stopwatch = ThroughputMeter()
    skipped, must_watch, lookahead = (
        monitor.state.skipped_batches,
        monitor.state.must_watch_steps,
        recipe.train.lookahead,
    )
    watch = Watch(model, every_step=must_watch or bool(skipped))
    optimizer = build_optimizer(recipe.optimizer, model, settings, heads=network.heads)
    schedule = build_schedule(recipe.schedule, steps_per_epoch=sampler.steps_per_epoch, total_steps=data.total_steps)
    fingerprint = {split: source.fingerprint() for split, source in data.sources.items()} if world.is_rank_zero else {}
    if is_reference(recipe.data.sampling):
        fingerprint[SAMPLING] = sampler.digest()
    return Session(
        recipe=recipe,
        profile=profile,
        run=run,
        world=world,
        train_reader=data.readers["train"],
        val_reader=data.readers["val"],
        normalize=data.normalize,
        prepare=data.prepare,
        draws_anywhere=may_draw_anywhere(recipe, model),
        sampler=sampler,
        total_steps=data.total_steps,
        intervals=Intervals(recipe, sampler.steps_per_epoch, data.total_steps),
        compilation=compilation,
        strategy=strategy,
        freezing=Freezing(model, network.unfreeze_steps, network.end_steps),
        task=task,
        class_weights=loss.class_weights,
        metrics=loss.metrics,
        optimizer=optimizer,
        lookahead=None if lookahead is None else LookaheadWeights(model, lookahead, total_steps=data.total_steps),
        average=build_average(recipe, model, optimizer, steps_per_epoch=sampler.steps_per_epoch),
        schedule=schedule,
        clip=build_clipping(recipe.train, model, heads=network.heads),
        precision=precision,
        watch=watch,
        losses=LossMeter(sampler, world, watch, others=task.form.losses),
        stopwatch=stopwatch,
        checkpointer=Checkpointer(run.checkpoints, config=recipe.checkpoint, world=world),
        first=data.first,
        extra=extra,
        unsaved=unsaved,
        unwrapped_copy=network.unwrapped_copy,
        skipped=SkippedSteps(skipped, sampler),
        fingerprint=fingerprint,
        input=data.input,
        monitor=monitor,
        machine=MachineSampler(
            run,
            monitor,
            rank=world.rank,
            world_size=world.size,
            is_first_of_node=world.local_rank == 0,
            gpu_uuids=[str(torch.cuda.get_device_properties(gpu).uuid) for gpu in world.gpus],
            pace=lambda: stopwatch.pace,
            every_s=recipe.log.system_every_s,
        ),
        peak_share_of_sample=share,
        stop=StopConsensus(world, monitor.stop.request.is_set, name=f"stop-{len(skipped)}-{must_watch}"),
        profiler=Profiler(run, world, monitor.state, is_enabled=profile.trace),
    )


def _with_found_micro_batch_size(profile: Profile, run: RunDirectory, parts: Parts) -> DataSetup:
    """Return the data split into micro-batches of the largest size that fits in memory."""
    recipe, world, data = parts.recipe, parts.world, parts.data
    if recipe.parallel.strategy == "fsdp" or world.num_devices > 1:
        raise RecipeError(
            "train.micro_batch_size=auto tries the whole network on one device, which parallel.strategy=fsdp and dp "
            "do not do; give a number"
        )
    largest = data.sampler.batching.micro_batch_size

    def find() -> int:
        return try_micro_batch_sizes(
            recipe,
            parts.network.model,
            data.first,
            largest=largest,
            limit_bytes=memory_limit_bytes(world, processes=profile.processes),
            prepare=data.prepare,
            losses=losses_of(parts.task, recipe.task),
            world=world,
        )

    with preserve_state(parts.loss.function):
        size = resolve_micro_batch_size(run, world, largest=largest, find=find)
    sampler = build_train_sampler(recipe, size, data.train_source, world=world)
    log.info("%s", sampler.batching)
    return replace(data, sampler=sampler)
