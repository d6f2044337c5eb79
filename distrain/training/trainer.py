"""Owns training: the loop over the steps, with records, evaluations and checkpoints, told top to bottom."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress

import torch

from distrain.checkpoint.tensors import digest, weights_digest
from distrain.config import Recipe
from distrain.config.metrics import is_better
from distrain.config.profile import Profile
from distrain.config.user_code import is_reference
from distrain.data.loading.loader import read_batches
from distrain.data.loading.sampler import evaluation_order
from distrain.data.sources.base import Batch
from distrain.distributed.world import World
from distrain.global_rng import seed_generators
from distrain.rng import Purpose, derive_seed
from distrain.runs.directory import RunDirectory, SkippedBatch, Status
from distrain.training.build import build_session
from distrain.training.device.allocator import release_unused
from distrain.training.early_stopping import check_target, end_at, end_early, end_without_progress, last_step_in_time
from distrain.training.evaluate import Evaluation, evaluate
from distrain.training.heartbeat import Heart
from distrain.training.loggers import Sinks
from distrain.training.loggers.jsonl import rewind_metrics
from distrain.training.loggers.protocol import Moment, Opening, Record
from distrain.training.nonfinite import NotFiniteError, leave_out
from distrain.training.optim.optimizer import set_learning_rate
from distrain.training.resume import Start, find_checkpoint, resume, save
from distrain.training.session import Session

log = logging.getLogger(__name__)


def train(recipe: Recipe, profile: Profile, run: RunDirectory, world: World, heart: Heart) -> bool:
    """Train from the newest good checkpoint of the run directory, or from step 0, to the end or to a stop request.

    Returns whether the end was reached. Raises a `UserError` where recipe, data and run directory do not go together,
    and `TrainingError` where one step after the other makes numbers that are not finite.
    """
    set_determinism(recipe)
    skipped = run.read_status().skipped_batches
    while True:
        result = _train_once(recipe, profile, run, world, heart, skipped)
        if isinstance(result, bool):
            return result
        skipped = result
        release_unused(world.device)  # the network, before another one is built: there may be no room for two


def _train_once(
    recipe: Recipe, profile: Profile, run: RunDirectory, world: World, heart: Heart, skipped: list[SkippedBatch]
) -> bool | list[SkippedBatch]:
    """Train up to the end or a stop, and return whether it was the end; or the batches to leave out in another try."""
    found = find_checkpoint(run, world)
    session = build_session(recipe, profile, run, world, heart, skipped=skipped, has_checkpoint=found is not None)
    start = resume(session, found)
    if start.ending is not None:
        session = end_at(session, start.step, start.ending)
    heart.begin(_begin_attempt(session, start), steps_per_epoch=session.order.steps_per_epoch)
    history = rewind_metrics(run, start.step - start.is_record_due) if world.is_main else []
    try:
        with (
            Sinks(_opening(session, history) if world.is_main else None) as sinks,
            _closing_after(heart),
            run.room_for_last_words() if world.is_main else nullcontext(),
            session.checkpointer,
            session.tracer,
            session.stop,
        ):
            is_complete = run_to_end(session, start, sinks)
    except NotFiniteError as error:
        try:
            return leave_out(session, error)
        finally:
            session.close()
    if is_complete:
        heart.status.weights_digest = weights_digest(session.model)
        heart.status.state_digest = digest(session.tensors())
    heart.beat("finished" if is_complete else "stopped")
    if world.is_main and not is_complete:
        with suppress(OSError):  # a start takes it away, too
            run.stop.unlink(missing_ok=True)  # the request is met: the worker's next start goes on
    return is_complete


def run_to_end(session: Session, start: Start, sinks: Sinks) -> bool:
    """Train from `start` on, with records, evaluations and checkpoints where they are due.

    Returns whether the last step was reached; False after a stop request, with a checkpoint of that very step.
    """
    recipe, world, heart = session.recipe, session.world, session.heart
    step = start.step
    is_recorded = not (world.any_rank(heart.hear()) or session.stop.is_reached(step))
    if is_recorded and start.is_record_due:
        session, is_recorded = write_records(session, step, sinks)
    if not is_recorded:
        log.info("stopped on request at step %d; this attempt took no step", step)
        return False
    wanted = (step for step in range(start.step, session.total_steps) if step not in session.skipped)
    reading = read_batches(
        session.train_reader,
        session.order.micro_batches(wanted),
        num_workers=recipe.data.num_workers,
        device=world.device,
        loader=recipe.data.loader,
    )
    with closing(reading) as batches:
        return _run_on(session, batches, step, sinks)


def _run_on(session: Session, batches: Iterator[Batch], step: int, sinks: Sinks) -> bool:
    world, heart = session.world, session.heart
    heart.beat("running")
    while step < session.total_steps:
        started, first_step = time.perf_counter(), step
        boundary = last_step_in_time(session, step, session.due.next_boundary(step))
        step = run_steps(session, batches, step, session.tracer.advance(step, boundary))
        heart.phase = "sync"  # the host waits for its device here, and for those of all ranks
        settle(session, range(first_step, step))
        if session.compilation is not None:
            session.compilation.tell()
        session = end_early(session, step)
        seconds, epoch = time.perf_counter() - started, (step - 1) // session.order.steps_per_epoch
        session.stopwatch.add(seconds, session.num_samples(first_step, step), epoch=epoch)

        session, is_recorded = write_records(session, step, sinks)  # before the checkpoint: no resume repeats a record
        must_stop = session.stop.is_reached(step) or not is_recorded
        if must_stop or _must_save(session, step):
            heart.beat("stopping" if must_stop else None)
            save(session, step, is_record_due=not is_recorded)
            must_stop = must_stop or world.any_rank(heart.hear())  # in the meantime: no further step is taken
        if must_stop and not (step == session.total_steps and is_recorded):
            log.info("stopped on request at step %d", step)
            return False
    check_target(session)
    return True


def run_steps(session: Session, batches: Iterator[Batch], first_step: int, last_step: int) -> int:
    """Take the optimizer steps from `first_step` up to, not including, `last_step`: the loop that must be fast.

    Returns the number of steps taken since step 0: `last_step`, or less where the ranks have agreed to stop.
    """
    order, parallel, precision, losses = session.order, session.parallel, session.precision, session.losses
    optimizer, loss_function, prepare = session.optimizer, session.loss_function, session.prepare
    average, skipped, heart, stop = session.average, session.skipped, session.heart, session.stop
    slow, watch = session.slow, session.watch
    train, gpus, freezing = session.recipe.train, session.world.gpus, session.freezing
    base_lr, schedule, checkpointer = session.recipe.base_lr, session.schedule, session.checkpointer
    weights = list(parallel.module.parameters())
    is_own = is_reference(session.recipe.model.name) or is_reference(session.recipe.loss.name)
    for step in range(first_step, last_step):
        if stop.is_reached(step):
            return step
        if step in skipped:
            continue
        window = order.window(step)
        replica = parallel.begin_window(window, step)
        freezing.begin_step(step)
        for piece in window.own:
            heart.phase = "data"
            images, targets = prepare(*next(batches), step=step, piece=piece)
            heart.phase = "forward"
            seed_model_draws(train.seed, step, piece, gpus, is_own=is_own)
            with parallel.micro_batch(window, piece):
                with precision.autocast():
                    loss = loss_function(replica(images), targets)
                # The mean over the whole window, whatever its size, once the ranks are combined.
                share = len(targets) * parallel.loss_scale / window.num_samples
                heart.phase = "backward"
                precision.backward(loss if share == 1 else loss * share)
            losses.add(loss)
            heart.progress += 1
        heart.phase = "reduce"
        parallel.finish_window(window, step)
        heart.phase = "update"
        set_learning_rate(optimizer, base_lr * schedule(step))
        checkpointer.let_change()
        with freezing.untouched(step):
            watch.note(precision.step(optimizer, weights, clip_norm=train.clip_norm))
        parallel.drop_gradients()
        if slow is not None:
            slow.update(step)
        if average is not None:
            average.update(step)
        heart.step = step + 1
    return last_step


def settle(session: Session, steps: range) -> None:
    """Bring the losses of the steps to the host, and whether what else the steps made is finite.

    Raises `NotFiniteError` for the first step of which that is not so.
    """
    trained = [step for step in steps if step not in session.skipped]
    for place, (step, settled) in enumerate(zip(trained, session.losses.settle(trained), strict=True)):
        if settled.bad_pieces:
            raise NotFiniteError(step, "the loss", settled.bad_pieces)
        if settled.is_marked:
            cause = session.watch.explain(place, session.world)
            raise NotFiniteError(step, cause, range(session.order.window(step).num_pieces))


def write_records(session: Session, step: int, sinks: Sinks) -> tuple[Session, bool]:
    """Evaluate and record what is due at `step`.

    Returns the session, whose last step this is where evaluations do not get better, and whether that is done: False,
    with nothing recorded, where a stop broke it off.
    """
    heart = session.heart
    metrics: Record = {}
    if session.due.is_evaluation(step):
        heart.phase = "evaluate"
        found = run_evaluation(session)
        if found is None:
            return session, False
        metrics = {"step": step, "epoch": session.epoch(step), **found.metrics}
        _keep_best(heart.status, step, found.metrics)
        session = end_without_progress(session, step)
    heart.phase = "record"
    record = _record(session, step) if session.due.is_record(step) else {}
    if record | metrics:
        sinks.write(record | metrics)
    return session, True


def seed_model_draws(seed: int, step: int, micro_batch: int, gpus: range, *, is_own: bool) -> None:
    """Seed what the network draws, dropout say, as a function of (seed, step, micro-batch) and nothing else.

    Where it or the loss is the user's own, it may draw from numpy and from Python as well.
    """
    value = derive_seed(seed, Purpose.MODEL_DRAW, step, micro_batch)
    if is_own:
        seed_generators(seed, Purpose.MODEL_DRAW, step, micro_batch)
    else:  # a hundredth of the time of torch.manual_seed, which asks all backends
        torch.default_generator.manual_seed(value)
    for gpu in gpus:
        torch.cuda.default_generators[gpu].manual_seed(value + gpu - gpus[0])


def set_determinism(recipe: Recipe) -> None:
    """Choose deterministic or fastest kernels, as the recipe says; before anything is built."""
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003 - its usual form
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its module
    torch.backends.cudnn.benchmark = not recipe.train.deterministic
    torch.autograd.set_detect_anomaly(recipe.train.detect_anomaly)


def _begin_attempt(session: Session, start: Start) -> Status:
    status = session.run.read_status()
    status.begin_attempt(world_size=session.world.size, first_step=start.step)
    status.step, status.total_steps = start.step, session.total_steps
    status.best, status.best_by, status.skipped_batches = start.best, session.metrics.best, session.skipped.batches
    status.unsaved_state = session.unsaved
    return status


def _opening(session: Session, history: list[Record]) -> Opening:
    return Opening(
        run=session.run,
        recipe=session.recipe,
        first_step=session.heart.step,
        total_steps=session.total_steps,
        steps_per_epoch=session.order.steps_per_epoch,
        now=lambda: _now(session),
        images=session.shown_images,
        model=session.bare_copy,
        history=history,
        shown_metrics=session.metrics.shown,
    )


def _now(session: Session) -> Moment:
    """Return where the training is, in plain numbers: the thread that draws the live line waits for no device."""
    heart = session.heart
    return Moment(
        step=heart.step,
        phase=heart.phase,
        evaluated=heart.evaluated,
        to_evaluate=heart.to_evaluate,
        epoch_loss=session.losses.epoch_mean,
        epoch_samples_per_s=session.stopwatch.epoch_rate,
    )


@contextmanager
def _closing_after(heart: Heart) -> Iterator[None]:
    """Say, once the block is over, that the loggers are being closed."""
    try:
        yield
    finally:
        heart.phase = "close"


def _must_save(session: Session, step: int) -> bool:
    config, best = session.recipe.checkpoint, session.heart.status.best
    is_best = best is not None and best["step"] == step
    return session.due.is_checkpoint(step) or (is_best and config.keep_best) or session.checkpointer.is_overdue()


def _record(session: Session, step: int) -> Record:
    record: Record = {"step": step, "epoch": session.epoch(step)}
    if session.losses.has_settled:
        record["train/loss"] = session.losses.take_mean()
    record["train/lr"] = session.recipe.base_lr * session.schedule(step - 1)
    record["train/samples_per_s"] = session.stopwatch.take_rate()
    if (blocked_s := session.checkpointer.take_blocked_s()) is not None:
        record["checkpoint/blocked_s"] = blocked_s
    if skipped := session.skipped.between(0, step):
        record["train/skipped_batches"] = len(skipped)
    return record


def run_evaluation(session: Session) -> Evaluation | None:
    """Evaluate the validation samples of all ranks; None, on every rank, where a stop broke it off."""
    world, recipe, heart = session.world, session.recipe, session.heart
    own = evaluation_order(
        num_samples=len(session.val_reader.source),
        batch_size=recipe.eval.batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    reading = read_batches(
        session.val_reader,
        own,
        num_workers=recipe.data.num_workers,
        device=world.device,
        loader=recipe.data.loader,
    )

    def normalized(batches: Iterator[Batch]) -> Iterator[Batch]:
        for images, targets in batches:
            heart.progress += 1
            yield session.normalize(images), targets
            heart.evaluated += 1

    heart.evaluated, heart.to_evaluate = 0, len(own)
    session.checkpointer.let_change()  # the averages take the place of the weights
    is_collective = session.parallel.needs_even_passes
    with (
        closing(reading) as batches,
        session.extra.of_main(world),
        nullcontext() if session.average is None else session.average.in_place(),
    ):
        return evaluate(
            session.model,
            normalized(batches),
            num_batches=-(-len(session.val_reader.source) // recipe.eval.batch_size),
            idle_batch=session.shown_images.to(world.device) if is_collective else None,
            loss_function=session.loss_function,
            chosen=session.metrics,
            precision=session.precision,
            views=recipe.eval,
            world=world,
            must_break_off=lambda: heart.is_stop_requested and not is_collective,
        )


def _keep_best(status: Status, step: int, metrics: Record) -> None:
    """Note an evaluation; that of step 0, of which there is no checkpoint, is never the best."""
    status.last = {"step": step, **metrics}
    if step > 0 and is_better(status.best_by, metrics, status.best):
        status.best = status.last
