"""Trains: the loop over the steps, with records, evaluations and checkpoints; read it from top to bottom."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace

from distrain.checkpoint.tensors import digest, weights_digest
from distrain.config import Recipe
from distrain.config.profile import Profile
from distrain.data.loading.loader import read_batches
from distrain.data.sources.base import Batch
from distrain.distributed.world import World
from distrain.runs.checkpoints import newest_step
from distrain.runs.directory import RunDirectory
from distrain.runs.pause import read_pause
from distrain.runs.stop_file import answer_stop, read_stop_reason, request_stop
from distrain.training.anomaly import describe_anomalies
from distrain.training.build import build_session
from distrain.training.determinism import seed_model_draws, set_determinism
from distrain.training.device.allocator import release_unused
from distrain.training.early_stopping import (
    check_target,
    check_time_and_target,
    last_step_in_time,
    stop_at,
)
from distrain.training.hooks.calls import Hooks, build_hooks
from distrain.training.hooks.hook import TrainingStart
from distrain.training.input_samples import take_input_samples
from distrain.training.loggers import LoggerCollection
from distrain.training.loggers.jsonl import rewind_metrics
from distrain.training.loggers.protocol import LoggerContext, Moment, Record
from distrain.training.monitor import RankMonitor
from distrain.training.nonfinite import NotFiniteError, roll_back
from distrain.training.optim.optimizer import set_learning_rate
from distrain.training.records import write_records
from distrain.training.resume import ResumePoint, find_checkpoint, resume, save
from distrain.training.session import Session
from distrain.training.train_state import StepProgress

log = logging.getLogger(__name__)


def train(recipe: Recipe, profile: Profile, run: RunDirectory, world: World, monitor: RankMonitor) -> bool:
    """Train from the newest valid checkpoint of the run directory, or from step 0, to the end or to a stop request.

    Returns whether the end was reached. Raises a `UserError` if recipe, data and run directory do not match, and
    `TrainingError` if too many steps produce values that are not finite.
    """
    set_determinism(recipe)
    monitor.state.load(run.read_status())
    hooks = build_hooks(recipe.hooks, is_new=newest_step(run.checkpoints) == 0) if world.is_rank_zero else None
    with (
        describe_anomalies(monitor.state) if recipe.train.detect_anomaly else nullcontext(),
        nullcontext() if hooks is None else hooks.telling_failure(monitor.state),
    ):
        while (is_complete := _train_attempt(recipe, profile, run, world, monitor, hooks)) is None:
            release_unused(world.device)  # the old network, as memory may not suffice for two
    if hooks is not None:
        hooks.end(run, monitor.state.step, is_complete=is_complete)
    return is_complete


def _train_attempt(
    recipe: Recipe, profile: Profile, run: RunDirectory, world: World, monitor: RankMonitor, hooks: Hooks | None
) -> bool | None:
    """Train to the end or to a stop, and return whether it was the end; None to retry after a rollback."""
    checkpoint = find_checkpoint(run, world)
    session = build_session(recipe, profile, run, world, monitor, has_checkpoint=checkpoint is not None)
    start = resume(session, checkpoint)
    if start.ending is not None:
        session = stop_at(session, start.step, start.ending)
    session = replace(session, hooks=hooks)
    _begin_attempt(session, start)
    history = rewind_metrics(run, start.step - start.is_record_due) if world.is_rank_zero else []
    try:
        with (
            LoggerCollection(_logger_context(session, history) if world.is_rank_zero else None) as loggers,
            _closing_after(session),
            run.reserved_disk_space() if world.is_rank_zero else nullcontext(),
            session.checkpointer,
            session.profiler,
            session.machine,
            session.stop,
        ):
            is_complete = run_to_end(session, start, loggers)
    except NotFiniteError as error:
        try:
            roll_back(session, error)
        finally:
            session.close()
        return None
    if is_complete:
        monitor.state.keep_digests(weights=weights_digest(session.model), state=digest(session.tensors()))
    monitor.report("finished" if is_complete else "stopped")
    if world.is_rank_zero and not is_complete:
        answer_stop(run)  # the next start resumes
    return is_complete


def run_to_end(session: Session, start: ResumePoint, loggers: LoggerCollection) -> bool:
    """Train from `start` on, with records, evaluations and checkpoints at their intervals.

    Returns whether the last step was reached; False after a stop request, with a checkpoint of the current step.
    """
    recipe, world = session.recipe, session.world
    step = start.step
    is_recorded = not (world.any_over_ranks(session.monitor.stop.poll_stop_request()) or session.stop.is_reached(step))
    if is_recorded and start.is_record_due:
        session, is_recorded = write_records(session, step, loggers)
    if not is_recorded:
        log.info("stopped on request at step %d; this attempt took no step", step)
        return False
    pause_step = find_pause_step(session)
    if pause_step is not None and pause_step <= step < session.total_steps:
        _report_pause(session, step)
        return False
    steps = session.skipped.others(range(start.step, session.total_steps))
    reading = read_batches(
        session.train_reader,
        session.sampler.micro_batches(steps),
        num_workers=recipe.data.num_workers,
        device=world.device,
        loader=recipe.data.loader,
    )
    with closing(reading) as batches:
        return _train_loop(session, session.stopwatch.timed(batches), step, loggers, pause_step=pause_step)


def find_pause_step(session: Session) -> int | None:
    """Return the step after which the run pauses, the same on every rank; None where it trains to its end."""
    world = session.world
    pause = world.from_rank_zero(read_pause(session.run) if world.is_rank_zero else None)
    return None if pause is None else pause.step(session.sampler.steps_per_epoch)


def _train_loop(
    session: Session, batches: Iterator[Batch], step: int, loggers: LoggerCollection, *, pause_step: int | None
) -> bool:
    world, state, monitor = session.world, session.state, session.monitor
    monitor.report("running")
    while step < session.total_steps:
        started, first_step = time.perf_counter(), step
        boundary = last_step_in_time(session, step, session.intervals.next_boundary(step))
        if pause_step is not None and step < pause_step:
            boundary = min(boundary, pause_step)
        step = run_steps(session, batches, step, session.profiler.advance(step, boundary))
        state.phase = "sync"  # here the host waits for the devices of all ranks
        sync_losses(session, range(first_step, step))
        if session.compilation is not None:
            session.compilation.report()
        session = check_time_and_target(session, step)
        seconds, epoch = time.perf_counter() - started, (step - 1) // session.sampler.steps_per_epoch
        samples = session.num_samples(first_step, step)
        session.stopwatch.add(seconds, samples, steps=step - first_step, epoch=epoch)

        session, is_recorded = write_records(
            session, step, loggers
        )  # before the checkpoint: no resume repeats a record
        if session.hooks is not None:
            session.hooks.boundary(session.run.checkpoints, steps_s=seconds)
        must_stop = session.stop.is_reached(step) or not is_recorded or step == pause_step
        if must_stop or _must_save(session, step):
            monitor.report("stopping" if must_stop else None)
            save(session, step, is_record_due=not is_recorded)
            # A request that arrived meanwhile: take no further step.
            must_stop = must_stop or world.any_over_ranks(monitor.stop.poll_stop_request())
        if must_stop and not (step == session.total_steps and is_recorded):
            if step == pause_step:
                _report_pause(session, step)
            else:
                log.info("stopped on request at step %d", step)
            return False
    check_target(session)
    return True


def run_steps(
    session: Session,
    batches: Iterator[Batch],
    first_step: int,
    last_step: int,
    *,
    progress: StepProgress | None = None,
) -> int:
    """Run the optimizer steps from `first_step` up to, not including, `last_step`: the loop that must be fast.

    Returns the number of steps taken since step 0: `last_step`, or fewer if the ranks have agreed to stop.
    `progress` replaces the session's state, of which the loop sets step and phase.
    """
    sampler, strategy, precision, losses = session.sampler, session.strategy, session.precision, session.losses
    optimizer, task_losses, prepare = session.optimizer, session.task.loss, session.prepare
    average, stop, hooks = session.average, session.stop, session.hooks
    skipped = frozenset(session.skipped.between(first_step, last_step))
    state = session.state if progress is None else progress
    lookahead, watch, everywhere = session.lookahead, session.watch, session.draws_anywhere
    train, gpus, freezing, clip = session.recipe.train, session.world.gpus, session.freezing, session.clip
    base_lr, schedule, checkpointer = session.recipe.base_lr, session.schedule, session.checkpointer
    weights = list(strategy.module.parameters())
    recorded_step = last_step - 1 if session.intervals.should_log(last_step) else None
    for step in range(first_step, last_step):
        if stop.is_reached(step):
            return step
        if step in skipped:
            continue
        global_batch = sampler.global_batch(step)
        replica = strategy.begin_step(global_batch, step)
        freezing.begin_step(step)
        for index in global_batch.local:
            state.phase = "data"
            batch = prepare(*next(batches), step=step, index=index)
            state.phase = "forward"
            seed_model_draws(train.seed, step, index, gpus, everywhere=everywhere)
            with strategy.micro_batch(global_batch, index):
                with precision.autocast():
                    found = task_losses(replica, batch)
                # So that the combined gradients of all ranks are those of the mean over the global batch.
                share = len(batch[1]) * strategy.loss_scale / global_batch.num_samples
                state.phase = "backward"
                precision.backward(found["loss"] if share == 1 else found["loss"] * share)
            losses.add(found)
            state.progress += 1
        state.phase = "reduce"
        strategy.finish_step(global_batch, step)
        state.phase = "update"
        set_learning_rate(optimizer, base_lr * schedule(step))
        checkpointer.wait_for_staging()
        with freezing.without_frozen_gradients(step):
            is_recorded = step == recorded_step
            watch.note(precision.step(optimizer, weights, clip=clip, is_recorded=is_recorded))
        strategy.zero_grad()
        if lookahead is not None:
            lookahead.update(step)
        if average is not None:
            average.update(step)
        state.step = step + 1
        if hooks is not None:
            hooks.step_end(step + 1, epoch=session.epoch(step + 1), lr=base_lr * schedule(step))
    return last_step


def sync_losses(session: Session, steps: range) -> None:
    """Copy the losses of the steps to the host, and check that everything in the steps is finite.

    Raises `NotFiniteError` for the first step that has other values. If the watch does not check every step, the first
    step with such a loss may not be the cause, as the weights before it may not be finite; unless it is the first step.
    """
    trained = list(session.skipped.others(steps))
    for place, (step, synced) in enumerate(zip(trained, session.losses.sync_losses(trained), strict=True)):
        is_sure = session.watch.names_the_step or (place == 0 and not synced.is_marked)
        if (synced.bad_micro_batches or synced.is_marked) and not is_sure:
            raise NotFiniteError(step)
        if synced.bad_micro_batches:
            raise NotFiniteError(step, "the loss", synced.bad_micro_batches)
        if synced.is_marked:
            cause = session.watch.explain(place, session.world)
            raise NotFiniteError(step, cause, range(session.sampler.global_batch(step).num_micro_batches))


def _report_pause(session: Session, step: int) -> None:
    """Log that the run has paused, and write so for the queue, which would resume a run that was preempted."""
    log.info("paused at step %d", step)
    if session.world.is_rank_zero and read_stop_reason(session.run) != "cancelled":
        request_stop(session.run, "stopped")


def _begin_attempt(session: Session, start: ResumePoint) -> None:
    session.state.begin_attempt(
        world_size=session.world.size,
        first_step=start.step,
        total_steps=session.total_steps,
        steps_per_epoch=session.sampler.steps_per_epoch,
        best=start.best,
        best_by=session.metrics.best,
        own_metrics=session.metrics.own_directions,
        unsaved_state=session.unsaved,
    )
    session.monitor.report_start()
    if session.hooks is not None:
        event = TrainingStart(
            run=session.run.path,
            step=start.step,
            total_steps=session.total_steps,
            steps_per_epoch=session.sampler.steps_per_epoch,
            world_size=session.world.size,
        )
        session.hooks.start(event, checkpoints=session.run.checkpoints)


def _logger_context(session: Session, history: list[Record]) -> LoggerContext:
    return LoggerContext(
        run=session.run,
        recipe=session.recipe,
        first_step=session.state.step,
        total_steps=session.total_steps,
        steps_per_epoch=session.sampler.steps_per_epoch,
        now=lambda: _now(session),
        samples=take_input_samples(session),
        model=session.unwrapped_copy,
        history=history,
        shown_metrics=session.metrics.shown,
    )


def _now(session: Session) -> Moment:
    """Return where the training is, in plain numbers: the thread that draws the live line waits for no device."""
    state = session.state
    return Moment(
        step=state.step,
        phase=state.phase,
        evaluated=state.evaluated,
        to_evaluate=state.to_evaluate,
        epoch_loss=session.losses.epoch_mean,
        epoch_samples_per_s=session.stopwatch.epoch_rate,
    )


@contextmanager
def _closing_after(session: Session) -> Iterator[None]:
    """Say, once the block is over, that the loggers are being closed."""
    try:
        yield
    finally:
        session.state.phase = "close"


def _must_save(session: Session, step: int) -> bool:
    config, best = session.recipe.checkpoint, session.state.best
    is_best = best is not None and best["step"] == step
    return session.intervals.should_save(step) or (is_best and config.keep_best) or session.checkpointer.is_overdue()
