"""Saves the state of a run and resumes from it as if the run had not been interrupted."""

import logging
from dataclasses import dataclass

import torch

from distrain.checkpoint.tensors import SCHEDULE, changed_by_update
from distrain.config.metrics import restore_nan
from distrain.distributed.world import World
from distrain.errors import RunError
from distrain.runs import checkpoints
from distrain.runs.attempts import describe_changes
from distrain.runs.directory import RunDirectory
from distrain.tensors.module_state import LOSS
from distrain.training.session import SAMPLING, Ending, Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """The point at which an attempt begins: after `step` steps, with the best evaluation so far."""

    step: int
    best: dict[str, float] | None = None
    ending: Ending | None = None  # why it is the last step, though more were planned
    is_record_due: bool = (
        False  # a stop interrupted this step's evaluation, or the recipe evaluates before the first step
    )


def find_checkpoint(run: RunDirectory, world: World) -> checkpoints.Checkpoint | None:
    """Return the newest valid checkpoint, the same on every rank, or None if there is none."""
    checkpoint: checkpoints.Checkpoint | None = None
    if world.is_rank_zero:
        checkpoint, messages = checkpoints.latest_valid(run.checkpoints)
        checkpoints.remove_partial(run.checkpoints)
        for message in messages:
            log.warning("%s", message)
    step = int(world.all_reduce(torch.tensor(checkpoint.step if checkpoint else 0)))
    if step > 0 and checkpoint is None:
        checkpoint = checkpoints.read(checkpoints.final_path(run.checkpoints, step))
    return checkpoint


def resume(session: Session, checkpoint: checkpoints.Checkpoint | None) -> ResumePoint:
    """Load a checkpoint into the session; without one, start at step 0.

    A limit that ended the run at the checkpoint's step does so again, unless the recipe was changed there.

    Raises `ModelError` if weights or statistics are not finite, and `RunError` if the recipe has fewer steps.
    """
    world = session.world
    step = 0 if checkpoint is None else checkpoint.step
    if session.state.changes:
        log.info("from step %d on: %s", step, describe_changes(session.state.changes))
    if step > session.total_steps:
        raise RunError(f"the run is at step {step}, and its recipe ends at step {session.total_steps}; raise its limit")
    if checkpoint is None:
        session.watch.check(
            world, owner="the network at the start", advice="look at model.weights, or at how the network makes its own"
        )
        log.info("starts at step 0 of %d", session.total_steps)
        return ResumePoint(step=0, is_record_due=session.recipe.eval.at_start)
    if world.is_rank_zero:
        _check_resumable(session, checkpoint)
    from distrain.checkpoint.load import load_tensors, read_below, read_extra

    averaged_weights = session.averaged_weights
    load_tensors(checkpoint, model=session.model, optimizer=session.optimizer, others=averaged_weights, world=world)
    session.watch.check(
        world,
        owner=f"checkpoint {checkpoint.path.name}",
        advice=f"remove {checkpoint.path}, and training resumes from the one before it",
    )
    if session.schedule.is_stateful:
        session.schedule.load(read_below(checkpoint.path, SCHEDULE))
    extra = session.extra
    if extra.exists:
        packed = read_extra(
            checkpoint.path,
            network=extra.network_names,
            has_loss=extra.has_loss,
            rank=world.rank,
            world_size=world.size,
        )
        if extra.has_loss and not any(name.startswith(LOSS) for name in packed):
            log.warning("checkpoint %s has no state of the loss, which keeps its initial one", checkpoint.path.name)
        extra.write(packed)
    session.precision.load_state(checkpoint.state["loss_scale"])
    session.precision.load_gradient_norm(checkpoint.state.get("gradient_norm"))  # not in earlier versions
    session.losses.load_state(checkpoint.state, session.last_trained(checkpoint.step))
    log.info("resumes from checkpoint %s at step %d of %d", checkpoint.path.name, checkpoint.step, session.total_steps)
    state, best = checkpoint.state, restore_nan(checkpoint.state["best"] or {})
    if best.get("step") == 0:  # in checkpoints of earlier versions; that step has no checkpoint
        best = {}
    ending = state["ending"]
    if ending is not None and session.state.lifts(ending, step):
        ending = None
    return ResumePoint(step=step, best=best or None, ending=ending, is_record_due=state["is_record_due"])


def save(session: Session, step: int, *, is_record_due: bool) -> None:
    """Begin to save the checkpoint of `step`, from which a run resumes as if it had not been interrupted."""
    session.state.phase = "save"
    last = session.state.last_evaluation
    if session.average is not None:
        session.checkpointer.wait_for_staging()  # the average may replace the weights for a moment
        session.average.refresh()
    tensors = session.tensors()
    session.checkpointer.save(
        step,
        tensors=tensors,
        state={
            "samples_seen": session.num_samples(0, step),
            "best": session.state.best,
            "best_by": session.metrics.best,
            **({"own_metrics": own} if (own := session.metrics.own_directions) else {}),
            "evaluation": last if last is not None and last["step"] == step else None,
            "loss_scale": session.precision.state(),
            **session.losses.state(has_epoch=session.recipe.train.target_loss is not None),
            "is_record_due": is_record_due,
            "gradient_norm": session.precision.gradient_norm if is_record_due else None,
            "ending": session.ending,
            "data": session.fingerprint,
            "input": session.input,
            "classes": list(session.recipe.task.outputs(session.train_reader.source.classes)),
            "class_weights": None if session.class_weights is None else session.class_weights.tolist(),
            **({"task": session.task.fingerprint} if session.task.fingerprint else {}),
            "rounding": session.numerics_fingerprint(),
        },
        stable=changed_by_update(session.model, tensors),
    )


def _check_resumable(session: Session, checkpoint: checkpoints.Checkpoint) -> None:
    stored, now = dict(checkpoint.state["data"]), dict(session.fingerprint)
    if stored.pop(SAMPLING, None) != now.pop(SAMPLING, None):
        raise RunError(
            f"data.sampling={session.recipe.data.sampling} gives other weights than before checkpoint "
            f"{checkpoint.path.name}; bring the old function back, or train in a new run directory"
        )
    if stored != now:
        raise RunError(
            f"the data in {session.recipe.data.path} has changed since checkpoint {checkpoint.path.name}; "
            f"bring the old data back, or train in a new run directory"
        )
    for what, read in session.task.fingerprint.items():
        if checkpoint.state.get("task", {}).get(what) != read:
            raise RunError(
                f"the {what} of task={session.recipe.task.name} has changed since checkpoint {checkpoint.path.name}; "
                f"bring the old one back, or train in a new run directory"
            )
    for what, value in session.numerics_fingerprint().items():
        before = checkpoint.state["rounding"].get(what)
        if before != value:
            log.warning(
                "%s was %s before and is %s now: the quality of results is the same, but bits may differ",
                what,
                before,
                value,
            )
