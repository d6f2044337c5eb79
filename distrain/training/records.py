"""Evaluates and logs at the intervals of the recipe: one line of `metrics.jsonl`, and the same for other loggers."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext

import torch

from distrain.data.sources.base import Batch
from distrain.training.batchnorm_pass import compute_statistics
from distrain.training.early_stopping import check_patience
from distrain.training.evaluate import Evaluation, evaluate, read_evaluation_batches
from distrain.training.hooks.calls import Hooks
from distrain.training.loggers import LoggerCollection
from distrain.training.loggers.protocol import Record
from distrain.training.nonfinite import name_samples
from distrain.training.resume import save
from distrain.training.session import Session
from distrain.training.validation_results import write_validation

log = logging.getLogger(__name__)


def write_records(session: Session, step: int, loggers: LoggerCollection) -> tuple[Session, bool]:
    """Evaluate and log at `step`, if the recipe's intervals require it.

    Returns the session, which ends at this step if evaluations do not improve, and whether all is recorded: False if
    a stop interrupted the evaluation, in which case nothing is recorded. An error in the evaluation is raised once the
    step is saved; a resume then begins with this evaluation.
    """
    state = session.state
    metrics: Record = {}
    evaluation: Evaluation | None = None
    if session.intervals.should_evaluate(step):
        state.phase = "evaluate"
        evaluation = _evaluate_or_save(session, step)
        if evaluation is None:
            return session, False
        metrics = evaluation.metrics
        _warn_of_loss(session, step, evaluation.metrics)
        state.keep_evaluation(step, evaluation.metrics)
        write_validation(session, step, evaluation)
        session = check_patience(session, step)
    state.phase = "record"
    should_log = session.intervals.should_log(step)
    if should_log or metrics:
        record: Record = {"step": step, "epoch": session.epoch(step), "time": round(time.time(), 3)}
        record |= (_measured(session, step) if should_log else {}) | metrics
        loggers.write(record)
        if session.hooks is not None:
            _tell_hooks(session.hooks, record, metrics, best=state.best)
    if evaluation is not None:
        session.schedule.observe(step, evaluation.metrics)  # after the record, which has the rate of the step before
    return session, True


def _tell_hooks(hooks: Hooks, record: Record, metrics: Record, *, best: Record | None) -> None:
    step, epoch = int(record["step"]), record["epoch"]
    if metrics:
        hooks.evaluation(step, epoch=epoch, metrics=metrics, is_best=best is not None and best["step"] == step)
    hooks.record(record)


def _evaluate_or_save(session: Session, step: int) -> Evaluation | None:
    """Evaluate; an error is raised once the step is saved, and a rank without one waits for the end of the others.

    Where forward passes are collective, a rank cannot leave them alone: its error ends the run at once.
    """
    world, errors = session.world, list[Exception]()
    if world.size == 1:
        try:
            return run_evaluation(session)
        except Exception:
            _save_unevaluated(session, step)
            raise
    evaluation = run_evaluation(session, errors=None if session.strategy.forward_is_collective else errors)
    if evaluation is None and world.any_over_ranks(bool(errors)):
        _save_unevaluated(session, step)
        if errors:
            raise errors[0]
        world.barrier()
    return evaluation


def _save_unevaluated(session: Session, step: int) -> None:
    """Save the step, unless it is step 0, so that a resume begins with its evaluation."""
    if step > 0:
        save(session, step, is_record_due=True)


def _warn_of_loss(session: Session, step: int, metrics: dict[str, float]) -> None:
    """Warn of a validation loss that is not finite, if that of the previous evaluation was.

    All ranks must call it together.
    """
    loss, before = metrics["val/loss"], (session.state.last_evaluation or {}).get("val/loss", 0.0)
    if not math.isfinite(loss) and math.isfinite(before):
        bad = _find_bad_images(session)
        names = name_samples(session.val_reader.source, bad, rest="")
        cause = (
            f"in the pixels of {names} there are values that are not finite"
            if bad
            else "the images are finite; check the targets, and the loss and network in evaluation mode, such as its "
            "BatchNorm statistics"
        )
        log.warning(
            "the validation loss at step %d is %s, so this evaluation cannot be the best one; %s", step, loss, cause
        )


def _find_bad_images(session: Session) -> list[int]:
    """Return the validation samples whose images are not finite, after each rank has read its batches again."""
    world, size = session.world, session.recipe.eval.batch_size
    is_bad = torch.zeros(len(session.val_reader.source), dtype=torch.int64)
    _, reading = read_evaluation_batches(session.val_reader, session.recipe, world)
    with closing(reading) as batches:
        for number, (images, _) in enumerate(batches):
            if not images.is_floating_point():
                break  # bytes are always finite
            start = (number * world.size + world.rank) * size
            is_bad[start : start + len(images)] = ~images.flatten(1).isfinite().all(dim=1).cpu()
            session.state.progress += 1
    found: list[int] = world.all_reduce(is_bad).nonzero().flatten().tolist()
    return found


def run_evaluation(session: Session, *, errors: list[Exception] | None = None) -> Evaluation | None:
    """Evaluate the validation samples of all ranks; None on every rank if it was interrupted: by a stop, or an error.

    `errors` is that of `evaluate`.
    """
    world, recipe, state, stop = session.world, session.recipe, session.state, session.monitor.stop
    num_local, reading = read_evaluation_batches(session.val_reader, recipe, world)

    def normalized(batches: Iterator[Batch]) -> Iterator[Batch]:
        for images, targets in batches:
            state.progress += 1
            yield session.normalize(images), targets
            state.evaluated += 1

    state.evaluated, state.to_evaluate = 0, num_local
    session.checkpointer.wait_for_staging()  # the averages replace the weights
    is_collective = session.strategy.forward_is_collective
    average = session.average if session.average is not None and session.average.is_active else None
    with (
        closing(reading) as batches,
        session.extra.of_rank_zero(world),
        nullcontext() if average is None else average.in_place(),
    ):
        if average is not None and average.has_own_statistics and recipe.train.batchnorm_steps != 0:
            if not compute_statistics(session):
                return None
            average.take_buffers()
        return evaluate(
            session.model,
            normalized(batches),
            num_batches=-(-len(session.val_reader.source) // recipe.eval.batch_size),
            idle_batch=session.idle_batch if is_collective else None,
            task=session.task,
            chosen=session.metrics,
            precision=session.precision,
            world=world,
            must_break_off=lambda: stop.is_requested and not is_collective,
            errors=errors,
        )


def _measured(session: Session, step: int) -> Record:
    """Return the metrics of the steps since the record before."""
    record: Record = {}
    if session.losses.has_synced:
        record |= {f"train/{name}": mean for name, mean in session.losses.pop_means().items()}
    record["train/lr"] = session.recipe.base_lr * session.schedule(step - 1)
    if (samples_per_s := session.stopwatch.pop_rate()) is not None:
        record["train/samples_per_s"] = samples_per_s
        if session.peak_share_of_sample is not None:
            record["train/mfu"] = samples_per_s * session.peak_share_of_sample
    if (gradient_norm := session.precision.pop_gradient_norm()) is not None:
        record["train/grad_norm"] = gradient_norm
    if (blocked_s := session.checkpointer.pop_blocked_s()) is not None:
        record["checkpoint/blocked_s"] = blocked_s
    if skipped := session.skipped.between(0, step):
        record["train/skipped_batches"] = len(skipped)
    return record | session.machine.pop()
