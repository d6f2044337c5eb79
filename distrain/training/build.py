"""Owns the making of a session from the recipe: every part of a training, the same on every rank."""

import logging
import os
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distrain.checkpoint.writer import Checkpointer
from distrain.config import Model, Recipe
from distrain.config.batching import solve_batching
from distrain.config.intervals import Due
from distrain.config.profile import Profile
from distrain.data.loading.epoch_order import build_sampler
from distrain.data.loading.loader import BatchReader
from distrain.data.loading.sampler import MicroBatch, TrainOrder
from distrain.data.sources.base import Batch, Source
from distrain.data.sources.cached import hold
from distrain.data.sources.class_counts import class_counts
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.data.transforms.pipeline import Normalize, build_transforms
from distrain.distributed.compile import compile_network
from distrain.distributed.extra_state import ExtraState
from distrain.distributed.parallelize import build_parallel, check_sync_batchnorm, must_agree
from distrain.distributed.stop_consensus import StopAgreement
from distrain.distributed.unused_parameters import find_idle
from distrain.distributed.world import World
from distrain.errors import DataError, ModelError, RecipeError, WeightsUnreachableError
from distrain.global_rng import seed_generators
from distrain.models.copies import copy_network
from distrain.models.data_dependent_init import NUM_IMAGES, initialize
from distrain.models.freezing import Freezing, check_something_trains, end_steps, freeze
from distrain.models.registry import build_model, heads_of
from distrain.rng import Purpose
from distrain.runs.directory import RunDirectory
from distrain.tensors.undisturbed import undisturbed
from distrain.training.class_weights import resolve_class_weights
from distrain.training.device.batch_transforms import Preparation, check_mixing, check_sizes
from distrain.training.device.micro_batch_size import memory_limit_bytes, settle_micro_batch_size, try_micro_batch_sizes
from distrain.training.device.precision import MEMORY_FORMATS, Precision, place, set_tf32
from distrain.training.forewarnings import forewarn
from distrain.training.losses import LossFunction, build_loss, check_loss
from distrain.training.meters import LossMeter, Stopwatch
from distrain.training.metrics.selection import choose_metrics
from distrain.training.monitor import RankMonitor
from distrain.training.optim.optimizer import build_optimizer, build_schedule
from distrain.training.optim.param_groups import plan_settings
from distrain.training.optim.weight_averaging import SlowWeights, WeightAverage
from distrain.training.probe import check_state, try_network
from distrain.training.profiler import Tracer
from distrain.training.session import Session
from distrain.training.skipped_steps import SkippedSteps
from distrain.training.step_watch import Watch
from distrain.training.stored_weights import read_stored
from distrain.training.unsaved import report_unsaved

NUM_SHOWN_IMAGES = 8
IF_REACHABLE = "imagenet-if-reachable"

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
    """Make everything that a training needs, without the batches that the monitor's state skips.

    The weights that a recipe starts from are not asked for where a checkpoint takes their place.
    Raises a `UserError` where recipe, data and network do not go together.
    """
    with world.main_first():  # rank 0 downloads what is not there yet
        sources = choose_samples(open_sources(recipe.data), recipe.data, seed=recipe.train.seed)
    _check_not_empty(sources)
    train_source, num_classes = sources["train"], len(sources["train"].classes)
    class_weights = resolve_class_weights(
        recipe.loss.class_weights, classes=train_source.classes, counts=lambda: class_counts(train_source)
    )
    loss_function = build_loss(
        recipe.loss,
        num_classes=num_classes,
        target=train_source.target,
        device=world.device,
        class_weights=class_weights,
    )
    check_state(loss_function, name=f"loss.name={recipe.loss.name}")
    metrics = choose_metrics(recipe.eval, target=train_source.target, classes=train_source.classes)
    order = _order(recipe, recipe.train.micro_batch_size, train_source, world=world)
    total_steps = min(recipe.train.epochs * order.steps_per_epoch, recipe.train.max_steps or 2**63)
    readers = _build_readers(recipe, profile, sources, world=world, epochs=total_steps / order.steps_per_epoch)
    first = _first_batch(readers["train"], order.first_micro_batch().indices)
    first_val = _first_batch(readers["val"], np.arange(min(NUM_SHOWN_IMAGES, len(sources["val"]))))
    normalize = Normalize(
        recipe.augment,
        num_channels=first[0].shape[1],
        device=world.device,
        memory_format=MEMORY_FORMATS[recipe.compute.memory_format],
    )
    prepare = Preparation(recipe, normalize, steps_per_epoch=order.steps_per_epoch, num_classes=num_classes)
    shown_images = normalize(first[0].to(world.device))

    wants = None if has_checkpoint else recipe.model.weights
    model = _build_model(recipe, wants, train_source, in_channels=shown_images.shape[1], world=world)
    if wants is None and not has_checkpoint:
        initialize(model, lambda: _first_images(recipe, train_source))
    check_state(model, name=f"model.name={recipe.model.name}")
    bare_copy = _copy_for_sinks(recipe, model)
    with undisturbed(model):
        check_sizes(recipe, model.eval(), num_channels=shown_images.shape[1])
    heads = heads_of(recipe.model, model)
    thaw_steps = freeze(recipe.model, model, heads=heads, steps_per_epoch=order.steps_per_epoch)
    ends = end_steps(recipe.model, model, heads=heads, steps_per_epoch=order.steps_per_epoch)
    if not has_checkpoint:
        lengths = {"steps_per_epoch": order.steps_per_epoch, "total_steps": total_steps}
        check_something_trains(model, thaw_steps, ends, **lengths)
        for sentence in forewarn(recipe, sources, **lengths):
            log.warning("%s", sentence)
    settings = plan_settings(recipe.optimizer, model, heads=heads, example=shown_images.cpu())
    if recipe.train.micro_batch_size == "auto":
        with undisturbed(loss_function):
            size = _find_micro_batch_size(recipe, profile, run, world, order, model, first, prepare, loss_function)
        order = _order(recipe, size, train_source, world=world)
        log.info("%s", order.batching)
    with undisturbed(loss_function):
        check_mixing(
            recipe,
            loss_function,
            first[1].to(world.device),  # where the weights of the loss are
            num_classes=num_classes,
            micro_batch_size=order.batching.micro_batch_size,
        )
    check_sync_batchnorm(recipe, world, order)
    lookahead = recipe.train.lookahead
    set_tf32(recipe, world.device)
    model = place(model, recipe, world.device)
    precision = Precision(recipe.precision, world.device)
    try_network(
        recipe,
        model,
        order,
        precision,
        in_training=[prepare.inputs(first[0].to(world.device), step=s) for s in (0, prepare.smallest_step)],
        in_evaluation=normalize(first_val[0].to(world.device)),
        num_val_samples=len(sources["val"]),
        num_outputs=num_classes,
        num_devices=world.num_devices,
    )
    with precision.autocast():
        with undisturbed(loss_function):
            check_loss(loss_function, recipe.loss, first[1].to(world.device), num_outputs=num_classes)
        unsaved = report_unsaved(
            recipe, model, loss_function, shown_images[:2], first[1][:2].to(world.device), num_classes=num_classes
        )
        idle = find_idle(model, shown_images[:2]) if must_agree(recipe, world) else []
    compilation = compile_network(
        recipe,
        model,
        world,
        micro_batch_size=order.batching.micro_batch_size,
        num_pieces=len(order.window(0).own),
        processes=profile.processes,
    )
    extra = ExtraState(model, loss_function, device=world.device)
    parallel = build_parallel(
        recipe, model, world, batching=order.batching, example=shown_images, extra=extra, idle=idle
    )
    watch, skipped = Watch(model), monitor.state.skipped_batches
    return Session(
        recipe=recipe,
        profile=profile,
        run=run,
        world=world,
        train_reader=readers["train"],
        val_reader=readers["val"],
        normalize=normalize,
        prepare=prepare,
        order=order,
        total_steps=total_steps,
        due=Due(recipe, order.steps_per_epoch, total_steps),
        compilation=compilation,
        parallel=parallel,
        freezing=Freezing(model, thaw_steps, ends),
        loss_function=loss_function,
        class_weights=class_weights,
        metrics=metrics,
        optimizer=build_optimizer(recipe.optimizer, model, settings),
        slow=None if lookahead is None else SlowWeights(model, lookahead, total_steps=total_steps),
        average=WeightAverage(model, recipe.train.ema_decay) if recipe.train.ema_decay is not None else None,
        schedule=build_schedule(recipe.schedule, steps_per_epoch=order.steps_per_epoch, total_steps=total_steps),
        precision=precision,
        watch=watch,
        losses=LossMeter(order, world, watch),
        stopwatch=Stopwatch(),
        checkpointer=Checkpointer(run.checkpoints, config=recipe.checkpoint, world=world),
        shown_images=shown_images.cpu(),
        extra=extra,
        unsaved=unsaved,
        bare_copy=bare_copy,
        skipped=SkippedSteps(skipped, order),
        fingerprint={split: source.fingerprint() for split, source in sources.items()} if world.is_main else {},
        monitor=monitor,
        stop=StopAgreement(world, lambda: monitor.stop.is_requested, name=f"stop-{len(skipped)}"),
        tracer=Tracer(run, world, monitor.state, is_wanted=profile.trace),
    )


def _check_not_empty(sources: dict[str, Source]) -> None:
    for split, source in sources.items():
        if len(source) == 0:
            raise DataError(f"the {split} split of the data is empty")


def _order(
    recipe: Recipe, micro_batch_size: int | Literal["auto"] | None, source: Source, *, world: World
) -> TrainOrder:
    batching = solve_batching(recipe.data.batch_size, micro_batch_size, world.size, is_exact=recipe.train.exact)
    return TrainOrder(
        num_samples=len(source),
        sampler=build_sampler(recipe.data, source, seed=recipe.train.seed),
        batching=batching,
        drop_last=recipe.data.drop_last,
        rank=world.rank,
    )


def _build_readers(
    recipe: Recipe, profile: Profile, sources: dict[str, Source], *, world: World, epochs: float
) -> dict[str, BatchReader]:
    num_processes = max(1, len(os.sched_getaffinity(0)) // profile.processes)
    readers = {}
    for split, key, listed in (("train", "train", recipe.augment.train), ("val", "eval", recipe.augment.eval)):
        transforms = build_transforms(listed, key=f"augment.{key}")
        source = hold(
            sources[split],
            recipe.data.hold,
            name=split,
            epochs=epochs,
            num_processes=num_processes,
            seed=recipe.train.seed,
        )
        is_read_here = recipe.data.loader == "auto"  # loader processes could not use what lies on a GPU
        device = world.device if recipe.data.hold != "never" and is_read_here else None
        readers[split] = BatchReader(source, transforms, seed=recipe.train.seed, device=device)
    return readers


def _first_batch(reader: BatchReader, indices: NDArray[np.int64]) -> Batch:
    """Return the first few of these samples, their images not yet normalised; raises what is wrong with them."""
    batch = reader.read(MicroBatch(indices[:NUM_SHOWN_IMAGES]))
    if isinstance(batch, DataError):
        raise batch
    return batch


def _first_images(recipe: Recipe, source: Source) -> torch.Tensor:
    """Return the first training samples' images as the network gets them in evaluation, on the CPU."""
    reader = BatchReader(source, build_transforms(recipe.augment.eval, key="augment.eval"), seed=recipe.train.seed)
    batch = reader.read(MicroBatch(np.arange(min(NUM_IMAGES, len(source)), dtype=np.int64)))
    if isinstance(batch, DataError):
        raise batch
    return Normalize(recipe.augment, num_channels=batch[0].shape[1], device=torch.device("cpu"))(batch[0])


def _build_model(recipe: Recipe, wants: str | None, source: Source, *, in_channels: int, world: World) -> nn.Module:
    config = recipe.model.model_copy(update={"weights": "imagenet" if wants == IF_REACHABLE else wants})
    complaint = None
    try:
        model = _draw_model(recipe, config, source, in_channels=in_channels, world=world)
    except WeightsUnreachableError as error:
        if wants != IF_REACHABLE:
            raise
        complaint = str(error).partition(";")[0]
    if wants != IF_REACHABLE or not world.any_rank(complaint is not None):
        return model
    log.warning("%s: the network starts from random weights", complaint or "another rank could not have the weights")
    return _draw_model(
        recipe, config.model_copy(update={"weights": None}), source, in_channels=in_channels, world=world
    )


def _draw_model(recipe: Recipe, config: Model, source: Source, *, in_channels: int, world: World) -> nn.Module:
    stored = read_stored(config)
    seed_generators(recipe.train.seed, Purpose.MODEL_INIT)
    with world.main_first():  # rank 0 downloads weights that are not there yet
        return build_model(config, num_classes=len(source.classes), in_channels=in_channels, stored=stored)


def _copy_for_sinks(recipe: Recipe, model: nn.Module) -> nn.Module | None:
    """Return a copy in evaluation mode, or None, which is said, where the network does not allow one."""
    try:
        return copy_network(model, name=recipe.model.name).eval()
    except ModelError as error:
        if recipe.log.tensorboard:
            log.warning("%s; TensorBoard does not show its graph", error)
        return None


def _find_micro_batch_size(
    recipe: Recipe,
    profile: Profile,
    run: RunDirectory,
    world: World,
    order: TrainOrder,
    model: nn.Module,
    batch: Batch,
    prepare: Preparation,
    loss_function: LossFunction,
) -> int:
    if recipe.parallel.strategy == "fsdp" or world.num_devices > 1:
        raise RecipeError(
            "train.micro_batch_size=auto tries the whole network on one device, which parallel.strategy=fsdp and dp "
            "do not do; give a number"
        )
    largest = order.batching.micro_batch_size

    def find() -> int:
        limit_bytes = memory_limit_bytes(world, processes=profile.processes)
        return try_micro_batch_sizes(
            recipe,
            model,
            batch,
            largest=largest,
            limit_bytes=limit_bytes,
            prepare=prepare,
            loss_function=loss_function,
            world=world,
        )

    return settle_micro_batch_size(run, world, largest=largest, find=find)
