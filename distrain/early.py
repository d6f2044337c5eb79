"""Owns the ends that come before the planned last step."""

import logging
import math
from dataclasses import replace

from distrain.errors import TrainingError
from distrain.session import Session

log = logging.getLogger(__name__)


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
