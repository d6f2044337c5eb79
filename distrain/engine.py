"""Owns training: it composes data, model, optimizer, ranks, checkpoints and sinks into one loop, told top to bottom."""

import copy
import logging
import os
import platform
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from distrain import checkpoint
from distrain.batching import solve_batching
from distrain.data.loader import Batch, BatchReader, read_batches
from distrain.data.order import MicroBatch, TrainOrder, evaluation_order
from distrain.data.sources import Source, open_sources
from distrain.data.transforms import Normalize, build_transforms
from distrain.errors import DataError, RunError
from distrain.evaluate import evaluate
from distrain.heart import Heart
from distrain.launchers.profile import Profile
from distrain.losses import LossFunction, build_loss
from distrain.models.zoo import build_model
from distrain.optim import Factor, build_optimizer, build_schedule, set_learning_rate
from distrain.parallel import Parallel
from distrain.precision import Precision
from distrain.recipe import Recipe
from distrain.rundir import Attempt, RunDirectory, Status
from distrain.seeds import Purpose, derive_seed
from distrain.sinks import Sinks
from distrain.sinks.jsonl import rewind_metrics
from distrain.sinks.protocol import Opening, Record
from distrain.telemetry import LossMeter, Stopwatch
from distrain.world import StopAgreement, World

log = logging.getLogger(__name__)
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
    parallel: Parallel
    loss_function: LossFunction
    optimizer: torch.optim.Optimizer
    schedule: Factor
    precision: Precision
    losses: LossMeter
    stopwatch: Stopwatch
    shown_images: torch.Tensor
    fingerprint: dict[str, str]
    heart: Heart
    stop: StopAgreement

    @property
    def model(self) -> nn.Module:
        """The bare network."""
        return self.parallel.module


@dataclass(frozen=True)
class Start:
    """Where an attempt begins: after `step` steps, with the best evaluation up to there."""

    step: int
    best: dict[str, float] | None = None
    is_record_due: bool = False  # a stop broke off this step's evaluation: its records are still to be written


def train(recipe: Recipe, profile: Profile, run: RunDirectory, world: World, heart: Heart) -> bool:
    """Train from the newest good checkpoint of the run directory, or from step 0, to the end or to a stop request.

    Returns whether the end was reached. Raises a `UserError` where recipe, data and run directory do not go together.
    """
    _set_determinism(recipe)
    session = build_session(recipe, profile, run, world, heart)
    start = resume(session)
    heart.begin(_begin_attempt(session, start))
    history = rewind_metrics(run, start.step - start.is_record_due) if world.is_main else []
    with Sinks(_opening(session, history) if world.is_main else None) as sinks:
        is_complete = run_to_end(session, start, sinks)
    if is_complete:
        heart.status.weights_digest = checkpoint.weights_digest(session.model)
    heart.beat("finished" if is_complete else "stopped")
    if world.is_main and not is_complete:
        run.stop.unlink(missing_ok=True)  # the request is met: the worker's next start goes on
    return is_complete


def build_session(recipe: Recipe, profile: Profile, run: RunDirectory, world: World, heart: Heart) -> Session:
    """Make everything that a training needs, the same on every rank."""
    with world.main_first():  # rank 0 downloads what is not there yet
        sources = open_sources(recipe.data)
    seed = recipe.train.seed
    readers = {
        split: BatchReader(sources[split], build_transforms(transforms, key=f"augment.{key}"), seed=seed)
        for split, key, transforms in (("train", "train", recipe.augment.train), ("val", "eval", recipe.augment.eval))
    }
    _check_splits(sources)
    batching = solve_batching(recipe.data.batch_size, recipe.train.micro_batch_size, world.size)
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
    model = _build_model(recipe, sources["train"], in_channels=shown_images.shape[1], world=world)
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
        parallel=Parallel(model, world),
        loss_function=build_loss(recipe.loss),
        optimizer=build_optimizer(recipe.optimizer, model),
        schedule=build_schedule(recipe.schedule, steps_per_epoch=order.steps_per_epoch, total_steps=total_steps),
        precision=Precision(recipe.precision, world.device),
        losses=LossMeter(world),
        stopwatch=Stopwatch(),
        shown_images=normalize(shown_images.to(world.device)).cpu(),
        fingerprint={split: source.fingerprint() for split, source in sources.items()} if world.is_main else {},
        heart=heart,
        stop=StopAgreement(world, lambda: heart.is_stop_requested),
    )


def run_to_end(session: Session, start: Start, sinks: Sinks) -> bool:
    """Train from `start` on, with records, evaluations and checkpoints where they are due.

    Returns whether the last step was reached; False after a stop request, with a checkpoint of that very step.
    """
    recipe, world, heart = session.recipe, session.world, session.heart
    step = start.step
    if world.any_rank(heart.hear()) or (start.is_record_due and not write_records(session, step, sinks)):
        log.info("stopped on request before step %d was taken", step + 1)
        return False
    batches = read_batches(
        session.train_reader,
        session.order.micro_batches(step, session.total_steps),
        num_workers=recipe.data.num_workers,
        device=world.device,
    )
    heart.beat("running")
    while step < session.total_steps:
        started, first_step = time.perf_counter(), step
        step = run_steps(session, batches, step, _next_boundary(session, step))
        session.losses.settle()
        session.stopwatch.add(time.perf_counter() - started, _num_samples(session.order, first_step, step))

        is_recorded = write_records(session, step, sinks)  # before the checkpoint: a resume does not repeat a record
        must_stop = session.stop.is_reached(step) or not is_recorded
        if must_stop or _is_due(session, step, recipe.checkpoint.every_steps, recipe.checkpoint.every_epochs):
            heart.beat("stopping" if must_stop else None)
            save(session, step, is_record_due=not is_recorded)
            must_stop = must_stop or world.any_rank(heart.hear())  # while it was saved: no further step
        if must_stop and not (step == session.total_steps and is_recorded):
            log.info("stopped on request at step %d", step)
            return False
    return True


def run_steps(session: Session, batches: Iterator[Batch], first_step: int, last_step: int) -> int:
    """Take the optimizer steps from `first_step` up to, not including, `last_step`: the loop that must be fast.

    Returns the number of steps taken since step 0: `last_step`, or less where the ranks have agreed to stop.
    """
    order, parallel, precision, world = session.order, session.parallel, session.precision, session.world
    optimizer, loss_function, normalize = session.optimizer, session.loss_function, session.normalize
    train, heart = session.recipe.train, session.heart
    parameters = list(parallel.module.parameters())
    base_lr, schedule = session.recipe.optimizer.lr, session.schedule
    for step in range(first_step, last_step):
        if session.stop.is_reached(step):
            return step
        window = order.window(step)
        replica = parallel.replica_for(window)
        step_loss: torch.Tensor | None = None
        for piece in window.own:
            heart.phase = "data"
            images, targets = next(batches)
            heart.phase = "forward"
            seed_model_draws(train.seed, step, piece, world.device)
            with parallel.hold_back(is_last=piece == window.own[-1]):
                with precision.autocast():
                    loss = loss_function(replica(normalize(images)), targets)
                # The mean over the whole window, whatever its size, once DDP has taken the mean over the ranks.
                share = len(targets) * world.size / window.num_samples
                loss = loss if share == 1 else loss * share
                heart.phase = "backward"
                precision.backward(loss)
            heart.progress += 1
            step_loss = loss.detach() if step_loss is None else step_loss + loss.detach()
        heart.phase = "reduce"
        parallel.finish_window(window)
        heart.phase = "update"
        set_learning_rate(optimizer, base_lr * schedule(step))
        precision.step(optimizer, parallel.module, clip_norm=train.clip_norm)
        for parameter in parameters:
            parameter.grad = None  # what zero_grad does, without its bookkeeping for profilers
        session.losses.fresh.append(torch.zeros((), device=world.device) if step_loss is None else step_loss)
        heart.step = step + 1
    return last_step


def write_records(session: Session, step: int, sinks: Sinks) -> bool:
    """Evaluate and record what is due at `step`; returns False, with nothing recorded, where a stop broke it off."""
    recipe, heart = session.recipe, session.heart
    metrics: Record = {}
    if _is_due(session, step, recipe.eval.every_steps, recipe.eval.every_epochs):
        heart.phase = "evaluate"
        found = _evaluate(session)
        if found is None:
            return False
        metrics = {"step": step, "epoch": _epoch(session, step), **found}
        _keep_best(heart.status, step, found)
    heart.phase = "record"
    record = _record(session, step) if _is_due(session, step, recipe.log.every_steps, None) else {}
    if record | metrics:
        sinks.write(record | metrics)
    return True


def resume(session: Session) -> Start:
    """Load the newest good checkpoint into the session, or leave it as it is at step 0."""
    run, world = session.run, session.world
    found: checkpoint.Checkpoint | None = None
    if world.is_main:
        found, complaints = checkpoint.newest_good(run.checkpoints)
        for complaint in complaints:
            log.warning("%s", complaint)
        if found is not None:
            _check_resumable(session, found)
    step = int(world.all_reduce(torch.tensor(found.step if found else 0)))
    if step == 0:
        log.info("starts at step 0 of %d", session.total_steps)
        return Start(step=0)
    if found is None:
        found = checkpoint.read(run.checkpoints, step)
    checkpoint.load_tensors(found, model=session.model, optimizer=session.optimizer, world=world)
    session.precision.load_state(found.state["loss_scale"])
    session.losses.settled = found.state["losses_since_record"]
    log.info("goes on from checkpoint %s at step %d of %d", found.path.name, step, session.total_steps)
    return Start(step=step, best=found.state["best"], is_record_due=found.state["is_record_due"])


def save(session: Session, step: int, *, is_record_due: bool) -> None:
    """Write the checkpoint of `step`: with it, a run of any process goes on as if it had never ended."""
    session.heart.phase = "save"
    checkpoint.save(
        session.run.checkpoints,
        step=step,
        model=session.model,
        optimizer=session.optimizer,
        state={
            "samples_seen": _num_samples(session.order, 0, step),
            "best": session.heart.status.best,
            "loss_scale": session.precision.state(),
            "losses_since_record": session.losses.settled,
            "is_record_due": is_record_due,
            "data": session.fingerprint,
            "rounding": _rounding(session),
        },
        keep_last=session.recipe.checkpoint.keep_last,
        world=session.world,
    )


def seed_model_draws(seed: int, step: int, micro_batch: int, device: torch.device) -> None:
    """Seed what the network draws, dropout say, as a function of (seed, step, micro-batch) and nothing else."""
    value = derive_seed(seed, Purpose.MODEL_DRAW, step, micro_batch)
    torch.default_generator.manual_seed(value)  # a hundredth of the time of torch.manual_seed, which asks all backends
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(value)


def _set_determinism(recipe: Recipe) -> None:
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its module
    torch.backends.cudnn.benchmark = not recipe.train.deterministic


def _check_splits(sources: dict[str, Source]) -> None:
    for split, source in sources.items():
        if len(source) == 0:
            raise DataError(f"the {split} split of the data is empty")
    if list(sources["train"].classes) != list(sources["val"].classes):
        raise DataError("the train and val splits of the data have different classes")


def _first_images(reader: BatchReader, order: TrainOrder) -> torch.Tensor:
    """Return the images [n, channels, height, width] of the first few training samples, not yet normalised."""
    indices = next(order.micro_batches(0, 1)).indices[:NUM_SHOWN_IMAGES]
    batch = reader[MicroBatch(indices)]
    if isinstance(batch, DataError):
        raise batch
    return batch[0]


def _build_model(recipe: Recipe, source: Source, *, in_channels: int, world: World) -> nn.Module:
    torch.default_generator.manual_seed(derive_seed(recipe.train.seed, Purpose.MODEL_INIT))
    with world.main_first():  # rank 0 downloads weights that are not there yet
        model = build_model(recipe.model, num_classes=len(source.classes), in_channels=in_channels)
    return model.to(world.device)


def _begin_attempt(session: Session, start: Start) -> Status:
    status = session.run.read_status()
    status.close("failed")  # an attempt that was killed could not say how it ended
    status.state, status.step, status.total_steps, status.best = "starting", start.step, session.total_steps, start.best
    status.attempts.append(
        Attempt(
            started=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            world_size=session.world.size,
            first_step=start.step,
            last_step=start.step,
            state="starting",
        )
    )
    return status


def _opening(session: Session, history: list[Record]) -> Opening:
    heart = session.heart
    return Opening(
        run=session.run,
        recipe=session.recipe,
        first_step=heart.step,
        total_steps=session.total_steps,
        current_step=lambda: heart.step,
        images=session.shown_images,
        model=copy.deepcopy(session.model).cpu().eval(),
        history=history,
    )


def _next_boundary(session: Session, step: int) -> int:
    """Return the next step after which anything is due: the loop runs up to it without asking."""
    recipe, spe = session.recipe, session.order.steps_per_epoch
    intervals = [recipe.log.every_steps]
    for section in (recipe.eval, recipe.checkpoint):
        intervals += [section.every_steps] if section.every_steps else []
        intervals += [section.every_epochs * spe] if section.every_epochs else []
    return min(session.total_steps, *((step // interval + 1) * interval for interval in intervals))


def _is_due(session: Session, step: int, every_steps: int | None, every_epochs: int | None) -> bool:
    return (
        step == session.total_steps
        or (every_steps is not None and step % every_steps == 0)
        or (every_epochs is not None and step % (every_epochs * session.order.steps_per_epoch) == 0)
    )


def _record(session: Session, step: int) -> Record:
    return {
        "step": step,
        "epoch": _epoch(session, step),
        "train/loss": session.losses.take_mean(),
        "train/lr": session.recipe.optimizer.lr * session.schedule(step - 1),
        "train/samples_per_s": session.stopwatch.take_rate(),
    }


def _evaluate(session: Session) -> Record | None:
    world, recipe, heart = session.world, session.recipe, session.heart
    own = evaluation_order(
        num_samples=len(session.val_reader.source),
        batch_size=recipe.eval.batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    batches = read_batches(session.val_reader, own, num_workers=recipe.data.num_workers, device=world.device)

    def normalized() -> Iterator[Batch]:
        for images, targets in batches:
            heart.progress += 1
            yield session.normalize(images), targets

    return evaluate(
        session.model,
        normalized(),
        loss_function=session.loss_function,
        precision=session.precision,
        world=world,
        must_break_off=lambda: heart.is_stop_requested,
    )


def _keep_best(status: Status, step: int, metrics: Record) -> None:
    status.last = {"step": step, **metrics}
    if status.best is None or metrics["val/top1"] > status.best["val/top1"]:
        status.best = status.last


def _epoch(session: Session, step: int) -> float:
    return round(step / session.order.steps_per_epoch, 4)


def _num_samples(order: TrainOrder, first_step: int, last_step: int) -> int:
    size, spe = order.batching.global_batch_size, order.steps_per_epoch
    missing = size - order.window(spe - 1).num_samples  # what the last window of each epoch lacks
    return (last_step - first_step) * size - (last_step // spe - first_step // spe) * missing


def _rounding(session: Session) -> dict[str, str | int]:
    """Return what the last bits of a training depend on besides the recipe."""
    return {
        "processes": session.world.size,
        "threads": session.profile.threads,
        "device": torch.cuda.get_device_name() if session.world.device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
    }


def _check_resumable(session: Session, found: checkpoint.Checkpoint) -> None:
    if found.state["data"] != session.fingerprint:
        raise RunError(
            f"the data in {session.recipe.data.path} has changed since checkpoint {found.path.name}; "
            f"bring the old data back, or train in a new run directory"
        )
    for what, now in _rounding(session).items():
        before = found.state["rounding"].get(what)
        if before != now:
            log.warning(
                "%s was %s up to here and is %s now: results stay as good, their bits may differ", what, before, now
            )
