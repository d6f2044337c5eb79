"""Ends a run before its planned last step: at a target loss, without progress, or at a time limit.

The step at which a run stops early is evaluated and saved like any last step. The learning-rate schedule does not
change.
"""

import logging
import math
from dataclasses import replace

import torch

from distrain.errors import TrainingError
from distrain.messages import counted
from distrain.system.display import duration
from distrain.training.session import Ending, Session

log = logging.getLogger(__name__)


def stop_at(session: Session, step: int, ending: Ending) -> Session:
    """Make `step` the last one."""
    session.state.stop_at(step)
    return replace(session, total_steps=step, intervals=replace(session.intervals, total_steps=step), ending=ending)


def check_time_and_target(session: Session, step: int) -> Session:
    """Make `step` the last one if the target loss of the recipe or its time limit is reached.

    All ranks must call it together.
    """
    train, planned = session.recipe.train, session.total_steps
    if step == planned:
        return session
    if train.target_loss is not None and session.losses.last_epoch() < train.target_loss:
        return stop_at(session, step, "target_loss")
    if train.max_time is not None and _from_rank_zero(session, _seconds_left(session)) <= 0:
        log.info(
            "the time limit of %s (train.max_time) is reached at step %d of %d%s",
            *(duration(train.max_time * 60), step, planned, _rest(session)),
        )
        return stop_at(session, step, "max_time")
    return session


def check_patience(session: Session, step: int) -> Session:
    """Make `step` the last one if none of the last `train.patience` evaluations was better than the best one before.

    The result depends only on the best evaluation and the step, so that it is the same after any resume.
    """
    patience, best = session.recipe.train.patience, session.state.best
    since = 0 if best is None else int(best["step"])
    if patience is None or step == session.total_steps or session.intervals.num_evaluations(since, step) < patience:
        return session
    log.info(
        "train.patience=%d: no evaluation since step %d was better, so the run ends at step %d of %d%s",
        *(patience, since, step, session.total_steps, _rest(session)),
    )
    return stop_at(session, step, "patience")


def last_step_in_time(session: Session, step: int, last_step: int) -> int:
    """Return the step at which to check the time limit again: `last_step`, or an earlier one if time runs out.

    It is estimated from the remaining time and the speed so far. All ranks must call it together.
    """
    if session.recipe.train.max_time is None:
        return last_step
    pace_s = session.state.seconds_per_step
    steps_left = 1.0 if pace_s is None else _seconds_left(session) / pace_s
    return min(last_step, step + max(1, int(_from_rank_zero(session, steps_left))))


def check_target(session: Session) -> None:
    """Log that the target loss of the recipe is reached; raises `TrainingError` if it is not."""
    target, loss = session.recipe.train.target_loss, session.losses.last_epoch()
    if target is None:
        return
    if loss >= target and session.ending != "target_loss":  # after a resume at the last step the loss is unknown
        reached = f" (it is {loss:.3g})" if math.isfinite(loss) else ""  # unknown if no step was left
        raise TrainingError(
            f"the training loss did not fall below train.target_loss={target:g} in "
            f"{counted(session.total_steps, 'step')}"
            f"{reached}; check the learning rate, the labels, and frozen weights"
        )
    value = f"{loss:.3g} after {counted(session.total_steps, 'step')}, " if math.isfinite(loss) else ""
    log.info("the training loss is %sbelow the target of %g", value, target)


def _seconds_left(session: Session) -> float:
    assert session.recipe.train.max_time is not None
    return session.recipe.train.max_time * 60 - session.state.train_seconds


def _from_rank_zero(session: Session, value: float) -> float:
    """Return the value of rank 0 on every rank, so that all use the same clock."""
    return float(
        session.world.all_reduce(torch.tensor(value if session.world.is_rank_zero else 0.0, dtype=torch.float64))
    )


def _rest(session: Session) -> str:
    name = session.recipe.schedule.name
    return "" if name in {"constant", "plateau"} else f"; schedule.name={name} was planned for all of these steps"
