"""Owns training: the loop over the steps, with records, evaluations and checkpoints, told top to bottom."""

import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

import torch

from distrain import checkpoint
from distrain.checkpoint.load import load_tensors
from distrain.checkpoint.tensors import digest, weights_digest
from distrain.data.loader import Batch, read_batches
from distrain.data.order import evaluation_order
from distrain.errors import RunError, TrainingError
from distrain.evaluate import Evaluation, evaluate
from distrain.heart import Heart
from distrain.launchers.profile import Profile
from distrain.metrics import is_better
from distrain.optim import set_learning_rate
from distrain.recipe import Recipe
from distrain.rundir import Attempt, RunDirectory, Status
from distrain.seeds import Purpose, derive_seed
from distrain.session import Session, build_session
from distrain.sharding import own_part
from distrain.sinks import Sinks
from distrain.sinks.jsonl import rewind_metrics
from distrain.sinks.protocol import Opening, Record
from distrain.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where an attempt begins: after `step` steps, with the best evaluation up to there."""

    step: int
    best: dict[str, float] | None = None
    is_record_due: bool = False  # a stop broke off this step's evaluation, or one is wanted before the first step


def train(recipe: Recipe, profile: Profile, run: RunDirectory, world: World, heart: Heart) -> bool:
    """Train from the newest good checkpoint of the run directory, or from step 0, to the end or to a stop request.

    Returns whether the end was reached. Raises a `UserError` where recipe, data and run directory do not go together,
    and `TrainingError` where losses that are not finite do not end.
    """
    _set_determinism(recipe)
    skipped = frozenset(run.read_status().skipped_steps)
    while True:
        try:
            return _train_once(recipe, profile, run, world, heart, skipped)
        except _NotFiniteError as error:
            skipped = _leave_out(error.step, recipe, skipped, heart)


def _train_once(
    recipe: Recipe, profile: Profile, run: RunDirectory, world: World, heart: Heart, skipped: frozenset[int]
) -> bool:
    session = build_session(recipe, profile, run, world, heart, skipped=skipped)
    start = resume(session)
    heart.begin(_begin_attempt(session, start))
    history = rewind_metrics(run, start.step - start.is_record_due) if world.is_main else []
    with (
        Sinks(_opening(session, history) if world.is_main else None) as sinks,
        run.room_for_last_words() if world.is_main else nullcontext(),
        session.checkpointer,
        session.tracer,
    ):
        is_complete = run_to_end(session, start, sinks)
    if is_complete:
        heart.status.weights_digest = weights_digest(session.model)
        heart.status.state_digest = digest(session.tensors)
    heart.beat("finished" if is_complete else "stopped")
    if world.is_main and not is_complete:
        run.stop.unlink(missing_ok=True)  # the request is met: the worker's next start goes on
    return is_complete


def run_to_end(session: Session, start: Start, sinks: Sinks) -> bool:
    """Train from `start` on, with records, evaluations and checkpoints where they are due.

    Returns whether the last step was reached; False after a stop request, with a checkpoint of that very step.
    """
    recipe, world, heart = session.recipe, session.world, session.heart
    step = start.step
    if world.any_rank(heart.hear()) or (start.is_record_due and not write_records(session, step, sinks)):
        log.info("stopped on request before step %d was taken", step + 1)
        return False
    wanted = (step for step in range(start.step, session.total_steps) if step not in session.skipped)
    reading = read_batches(
        session.train_reader,
        session.order.micro_batches(wanted),
        num_workers=recipe.data.num_workers,
        device=world.device,
    )
    with closing(reading) as batches:
        return _run_on(session, batches, step, sinks)


def _run_on(session: Session, batches: Iterator[Batch], step: int, sinks: Sinks) -> bool:
    world, heart = session.world, session.heart
    heart.beat("running")
    while step < session.total_steps:
        started, first_step = time.perf_counter(), step
        step = run_steps(session, batches, step, session.tracer.advance(step, session.due.next_boundary(step)))
        settle(session, range(first_step, step))
        session = end_at_target(session, step)
        session.stopwatch.add(time.perf_counter() - started, session.num_samples(first_step, step))

        is_recorded = write_records(session, step, sinks)  # before the checkpoint: a resume does not repeat a record
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
    optimizer, loss_function, normalize = session.optimizer, session.loss_function, session.normalize
    average, skipped, heart, stop = session.average, session.skipped, session.heart, session.stop
    train, gpus = session.recipe.train, session.world.gpus
    base_lr, schedule = session.recipe.optimizer.lr, session.schedule
    for step in range(first_step, last_step):
        if stop.is_reached(step):
            return step
        if step in skipped:
            continue
        window = order.window(step)
        replica = parallel.begin_window(window, step)
        for piece in window.own:
            heart.phase = "data"
            images, targets = next(batches)
            heart.phase = "forward"
            seed_model_draws(train.seed, step, piece, gpus)
            with parallel.micro_batch(window, piece):
                with precision.autocast():
                    loss = loss_function(replica(normalize(images)), targets)
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
        precision.step(optimizer, parallel.module, clip_norm=train.clip_norm)
        parallel.drop_gradients()
        if average is not None:
            average.update(step)
        heart.step = step + 1
    return last_step


def settle(session: Session, steps: range) -> None:
    """Bring the losses of the steps to the host; raises `_NotFiniteError` for the first one that is not finite."""
    trained = [step for step in steps if step not in session.skipped]
    for step, loss in zip(trained, session.losses.settle(trained), strict=True):
        if not math.isfinite(loss):
            raise _NotFiniteError(step)


def end_at_target(session: Session, step: int) -> Session:
    """Make `step` the last one, with all that is due then, where the loss that the recipe wants is reached."""
    target = session.recipe.train.target_loss
    if target is None or session.losses.last_epoch() >= target or step == session.total_steps:
        return session
    session.heart.status.total_steps = step
    return replace(session, total_steps=step, due=replace(session.due, total_steps=step))


def check_target(session: Session) -> None:
    """Say that the loss that the recipe wants is reached; raises `TrainingError` where it is not."""
    target, loss = session.recipe.train.target_loss, session.losses.last_epoch()
    if target is None:
        return
    if loss >= target:
        reached = f" (it is {loss:.3g})" if math.isfinite(loss) else ""  # not known where no step was left to take
        raise TrainingError(
            f"the training loss did not come below train.target_loss={target:g} in {session.total_steps} steps"
            f"{reached}; look at the learning rate, the labels, and weights that are frozen"
        )
    log.info("the training loss is %.3g after %d steps, below the target of %g", loss, session.total_steps, target)


def write_records(session: Session, step: int, sinks: Sinks) -> bool:
    """Evaluate and record what is due at `step`; returns False, with nothing recorded, where a stop broke it off."""
    heart = session.heart
    metrics: Record = {}
    if session.due.is_evaluation(step):
        heart.phase = "evaluate"
        found = _evaluate(session)
        if found is None:
            return False
        metrics = {"step": step, "epoch": session.epoch(step), **found.metrics}
        _keep_best(heart.status, step, found.metrics)
    heart.phase = "record"
    record = _record(session, step) if session.due.is_record(step) else {}
    if record | metrics:
        sinks.write(record | metrics)
    return True


def resume(session: Session) -> Start:
    """Load the newest good checkpoint into the session, or leave it as it is at step 0."""
    run, world = session.run, session.world
    found: checkpoint.Checkpoint | None = None
    if world.is_main:
        found, complaints = checkpoint.newest_good(run.checkpoints)
        checkpoint.remove_drafts(run.checkpoints)
        for complaint in complaints:
            log.warning("%s", complaint)
        if found is not None:
            _check_resumable(session, found)
    step = int(world.all_reduce(torch.tensor(found.step if found else 0)))
    if step == 0:
        log.info("starts at step 0 of %d", session.total_steps)
        return Start(step=0, is_record_due=session.recipe.eval.at_start)
    if found is None:
        found = checkpoint.read(checkpoint.final_path(run.checkpoints, step))
    averages = session.averages
    load_tensors(found, model=session.model, optimizer=session.optimizer, others=averages, world=world)
    session.precision.load_state(found.state["loss_scale"])
    session.losses.settled = found.state["losses_since_record"]
    log.info("goes on from checkpoint %s at step %d of %d", found.path.name, step, session.total_steps)
    return Start(step=step, best=found.state["best"], is_record_due=found.state["is_record_due"])


def save(session: Session, step: int, *, is_record_due: bool) -> None:
    """Begin the checkpoint of `step`: with it, a run of any process goes on as if it had never ended.

    Raises `_NotFiniteError` where the weights are not finite, since such a checkpoint would be of no use.
    """
    session.heart.phase = "save"
    if session.world.any_rank(not _are_weights_finite(session)):
        raise _NotFiniteError(step - 1)
    last = session.heart.status.last
    session.checkpointer.save(
        step,
        tensors=session.tensors,
        state={
            "samples_seen": session.num_samples(0, step),
            "best": session.heart.status.best,
            "best_by": session.metrics.best,
            "evaluation": last if last is not None and last["step"] == step else None,
            "loss_scale": session.precision.state(),
            "losses_since_record": session.losses.settled,
            "is_record_due": is_record_due,
            "data": session.fingerprint,
            "classes": list(session.train_reader.source.classes),
            "rounding": session.rounding(),
        },
    )


def seed_model_draws(seed: int, step: int, micro_batch: int, gpus: range) -> None:
    """Seed what the network draws, dropout say, as a function of (seed, step, micro-batch) and nothing else."""
    value = derive_seed(seed, Purpose.MODEL_DRAW, step, micro_batch)
    torch.default_generator.manual_seed(value)  # a hundredth of the time of torch.manual_seed, which asks all backends
    for gpu in gpus:
        torch.cuda.default_generators[gpu].manual_seed(value + gpu - gpus[0])


class _NotFiniteError(Exception):
    """The loss or the update of a step is not finite, so that the weights after it are worth nothing.

    All ranks raise it together.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def _leave_out(step: int, recipe: Recipe, skipped: frozenset[int], heart: Heart) -> frozenset[int]:
    """Return the steps to leave out from now on: training goes on from the newest checkpoint without this one.

    Raises `TrainingError` where that has been done too often.
    """
    if len(skipped) >= recipe.train.max_rollbacks:
        raise TrainingError(
            f"the loss of step {step} is not finite, and train.max_rollbacks={recipe.train.max_rollbacks} batches "
            f"were left out before; lower optimizer.lr, or set train.clip_norm"
        )
    log.warning("the loss of step %d is not finite: goes back to the newest checkpoint and leaves its batch out", step)
    heart.status.skipped_steps = sorted({*skipped, step})
    heart.beat()  # a kill does not make it forgotten
    return skipped | {step}


def _are_weights_finite(session: Session) -> bool:
    norms = torch._foreach_norm([own_part(parameter) for parameter in session.model.parameters()])
    return bool(torch.stack(norms).isfinite().all())  # synchronises the device, as the save does anyway


def _set_determinism(recipe: Recipe) -> None:
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its module
    torch.backends.cudnn.benchmark = not recipe.train.deterministic
    torch.autograd.set_detect_anomaly(recipe.train.detect_anomaly)


def _begin_attempt(session: Session, start: Start) -> Status:
    status = session.run.read_status()
    status.close_attempt("failed")  # one whose rank 0 was killed could not say so
    status.state, status.step, status.total_steps = "starting", start.step, session.total_steps
    status.best, status.best_by, status.skipped_steps = start.best, session.metrics.best, sorted(session.skipped)
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
    return Opening(
        run=session.run,
        recipe=session.recipe,
        first_step=session.heart.step,
        total_steps=session.total_steps,
        current_step=lambda: session.heart.step,
        images=session.shown_images,
        model=session.bare_copy,
        history=history,
        shown_metrics=session.metrics.shown,
    )


def _must_save(session: Session, step: int) -> bool:
    config, best = session.recipe.checkpoint, session.heart.status.best
    is_best = best is not None and best["step"] == step
    return session.due.is_checkpoint(step) or (is_best and config.keep_best) or session.checkpointer.is_overdue()


def _record(session: Session, step: int) -> Record:
    record: Record = {"step": step, "epoch": session.epoch(step)}
    if session.losses.settled:
        record["train/loss"] = session.losses.take_mean()
    record["train/lr"] = session.recipe.optimizer.lr * session.schedule(step - 1)
    record["train/samples_per_s"] = session.stopwatch.take_rate()
    if (blocked_s := session.checkpointer.take_blocked_s()) is not None:
        record["checkpoint/blocked_s"] = blocked_s
    if skipped := [left_out for left_out in session.skipped if left_out < step]:
        record["train/skipped_batches"] = len(skipped)
    return record


def _evaluate(session: Session) -> Evaluation | None:
    world, recipe, heart = session.world, session.recipe, session.heart
    own = evaluation_order(
        num_samples=len(session.val_reader.source),
        batch_size=recipe.eval.batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    reading = read_batches(session.val_reader, own, num_workers=recipe.data.num_workers, device=world.device)

    def normalized(batches: Iterator[Batch]) -> Iterator[Batch]:
        for images, targets in batches:
            heart.progress += 1
            yield session.normalize(images), targets

    is_collective = session.parallel.needs_even_passes
    with closing(reading) as batches, nullcontext() if session.average is None else session.average.in_place():
        return evaluate(
            session.model,
            normalized(batches),
            num_batches=-(-len(session.val_reader.source) // recipe.eval.batch_size),
            idle_batch=session.shown_images.to(world.device) if is_collective else None,
            loss_function=session.loss_function,
            chosen=session.metrics,
            precision=session.precision,
            world=world,
            must_break_off=lambda: heart.is_stop_requested and not is_collective,
        )


def _keep_best(status: Status, step: int, metrics: Record) -> None:
    status.last = {"step": step, **metrics}
    if is_better(status.best_by, metrics, status.best):
        status.best = status.last


def _check_resumable(session: Session, found: checkpoint.Checkpoint) -> None:
    if found.state["data"] != session.fingerprint:
        raise RunError(
            f"the data in {session.recipe.data.path} has changed since checkpoint {found.path.name}; "
            f"bring the old data back, or train in a new run directory"
        )
    for what, now in session.rounding().items():
        before = found.state["rounding"].get(what)
        if before != now:
            log.warning(
                "%s was %s up to here and is %s now: results stay as good, their bits may differ", what, before, now
            )
