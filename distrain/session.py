"""Owns what a training is made of on one rank: data, network, strategy, optimizer, meters, built from the recipe."""

import copy
import platform
from dataclasses import dataclass

import torch
from torch import nn

from distrain.average import WeightAverage
from distrain.batching import solve_batching
from distrain.checkpoint.tensors import Tensors, average_tensors, gather_tensors
from distrain.checkpoint.writer import Checkpointer
from distrain.data.loader import BatchReader
from distrain.data.order import MicroBatch, TrainOrder
from distrain.data.sources import Source, choose_samples, open_sources
from distrain.data.transforms import Normalize, build_transforms
from distrain.due import Due
from distrain.errors import DataError
from distrain.heart import Heart
from distrain.launchers.profile import Profile
from distrain.losses import LossFunction, build_loss
from distrain.metrics import Target
from distrain.metrics.choice import ChosenMetrics, choose_metrics
from distrain.models.zoo import build_model
from distrain.optim import Factor, build_optimizer, build_schedule
from distrain.parallel import Parallel, build_parallel
from distrain.precision import Precision
from distrain.recipe import Recipe
from distrain.rundir import RunDirectory
from distrain.seeds import Purpose, derive_seed
from distrain.telemetry import LossMeter, Stopwatch
from distrain.tracing import Tracer
from distrain.world import StopAgreement, World

NUM_SHOWN_IMAGES = 8


@dataclass(frozen=True)
class Session:
    """What a training is made of on this rank. Only the tensors and the meters in it change."""

    recipe: Recipe
    profile: Profile
    run: RunDirectory
    world: World
    train_reader: BatchReader
    val_reader: BatchReader
    normalize: Normalize
    order: TrainOrder
    total_steps: int
    due: Due
    parallel: Parallel
    loss_function: LossFunction
    metrics: ChosenMetrics
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    schedule: Factor
    precision: Precision
    losses: LossMeter
    stopwatch: Stopwatch
    checkpointer: Checkpointer
    shown_images: torch.Tensor
    bare_copy: nn.Module  # for the sinks: on the CPU, not wrapped for several processes
    skipped: frozenset[int]  # steps whose batch is left out, since its loss was not finite
    fingerprint: dict[str, str]
    heart: Heart
    stop: StopAgreement
    tracer: Tracer

    @property
    def model(self) -> nn.Module:
        """The bare network."""
        return self.parallel.module

    @property
    def averages(self) -> Tensors:
        """The moving averages of the weights by their names in a checkpoint; none where the recipe keeps none."""
        return {} if self.average is None else average_tensors(self.average.tensors)

    @property
    def tensors(self) -> Tensors:
        """All tensors of the training by their names in a checkpoint; they share their memory with it."""
        return {**gather_tensors(self.model, self.optimizer), **self.averages}

    def epoch(self, step: int) -> float:
        """Return how many epochs `step` steps are."""
        return round(step / self.order.steps_per_epoch, 4)

    def num_samples(self, first_step: int, last_step: int) -> int:
        """Return how many samples the steps from `first_step` up to, not including, `last_step` train on."""
        size, spe = self.order.batching.global_batch_size, self.order.steps_per_epoch
        missing = size - self.order.window(spe - 1).num_samples  # what the last window of each epoch lacks
        return (last_step - first_step) * size - (last_step // spe - first_step // spe) * missing

    def rounding(self) -> dict[str, str | int]:
        """Return what the last bits of a training depend on besides the recipe."""
        is_cuda = self.world.device.type == "cuda"
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        rounding: dict[str, str | int] = {
            "threads": self.profile.threads,
            "device": torch.cuda.get_device_name() if is_cuda else processor,
            "torch": torch.__version__,
        }
        if not self.recipe.train.exact:
            strategy = type(self.parallel).__name__.lower()
            rounding |= {"processes": self.world.size, "strategy": strategy}
        return rounding


def build_session(
    recipe: Recipe, profile: Profile, run: RunDirectory, world: World, heart: Heart, *, skipped: frozenset[int]
) -> Session:
    """Make everything that a training needs, the same on every rank; `skipped` are the steps to leave out."""
    with world.main_first():  # rank 0 downloads what is not there yet
        sources = choose_samples(open_sources(recipe.data), recipe.data, seed=recipe.train.seed)
    seed = recipe.train.seed
    readers = {
        split: BatchReader(sources[split], build_transforms(transforms, key=f"augment.{key}"), seed=seed)
        for split, key, transforms in (("train", "train", recipe.augment.train), ("val", "eval", recipe.augment.eval))
    }
    _check_splits(sources)
    classes = sources["train"].classes
    target: Target = getattr(sources["train"], "target", "class")
    loss_function = build_loss(recipe.loss, num_classes=len(classes), target=target, device=world.device)
    metrics = choose_metrics(recipe.eval, target=target, classes=classes)
    batching = solve_batching(
        recipe.data.batch_size, recipe.train.micro_batch_size, world.size, is_exact=recipe.train.exact
    )
    order = TrainOrder(
        num_samples=len(sources["train"]),
        batching=batching,
        drop_last=recipe.data.drop_last,
        seed=seed,
        rank=world.rank,
    )
    total_steps = min(recipe.train.epochs * order.steps_per_epoch, recipe.train.max_steps or 2**63)
    shown_images = _first_images(readers["train"], order)
    normalize = Normalize(recipe.augment, num_channels=shown_images.shape[1], device=world.device)
    shown_images = normalize(shown_images.to(world.device))
    model = _build_model(recipe, sources["train"], in_channels=shown_images.shape[1], world=world)
    bare_copy = copy.deepcopy(model).cpu().eval()
    parallel = build_parallel(recipe, model, world, batching=batching, example=shown_images)
    return Session(
        recipe=recipe,
        profile=profile,
        run=run,
        world=world,
        train_reader=readers["train"],
        val_reader=readers["val"],
        normalize=normalize,
        order=order,
        total_steps=total_steps,
        due=Due(recipe, order.steps_per_epoch, total_steps),
        parallel=parallel,
        loss_function=loss_function,
        metrics=metrics,
        optimizer=build_optimizer(recipe.optimizer, model),
        average=WeightAverage(model, recipe.train.ema_decay) if recipe.train.ema_decay is not None else None,
        schedule=build_schedule(recipe.schedule, steps_per_epoch=order.steps_per_epoch, total_steps=total_steps),
        precision=Precision(recipe.precision, world.device),
        losses=LossMeter(order, world),
        stopwatch=Stopwatch(),
        checkpointer=Checkpointer(run.checkpoints, config=recipe.checkpoint, world=world),
        shown_images=shown_images.cpu(),
        bare_copy=bare_copy,
        skipped=skipped,
        fingerprint={split: source.fingerprint() for split, source in sources.items()} if world.is_main else {},
        heart=heart,
        stop=StopAgreement(world, lambda: heart.is_stop_requested, skipped=skipped),
        tracer=Tracer(run, world, heart, is_wanted=profile.trace),
    )


def _check_splits(sources: dict[str, Source]) -> None:
    for split, source in sources.items():
        if len(source) == 0:
            raise DataError(f"the {split} split of the data is empty")
    if list(sources["train"].classes) != list(sources["val"].classes):
        raise DataError("the train and val splits of the data have different classes")


def _first_images(reader: BatchReader, order: TrainOrder) -> torch.Tensor:
    """Return the images [n, channels, height, width] of the first few training samples, not yet normalised."""
    indices = next(order.micro_batches([0])).indices[:NUM_SHOWN_IMAGES]
    batch = reader[MicroBatch(indices)]
    if isinstance(batch, DataError):
        raise batch
    return batch[0]


def _build_model(recipe: Recipe, source: Source, *, in_channels: int, world: World) -> nn.Module:
    torch.default_generator.manual_seed(derive_seed(recipe.train.seed, Purpose.MODEL_INIT))
    with world.main_first():  # rank 0 downloads weights that are not there yet
        model = build_model(recipe.model, num_classes=len(source.classes), in_channels=in_channels)
    return model.to(world.device)
