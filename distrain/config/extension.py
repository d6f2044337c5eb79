"""Says which values of a recipe may change in an existing run, and why the others may not."""

from typing import Any

from distrain.config.recipe import Recipe
from distrain.config.user_code import is_reference

# Each takes effect at the step from which the run is extended, and no earlier step depends on it.
EXTENDABLE = frozenset(
    [
        "train.epochs",
        "train.max_steps",
        "train.max_time",
        "train.patience",
        "train.target_loss",
        "train.clip_norm",
        "train.clip_value",
        "train.agc",
        "train.ema_decay",
        "train.ema_warmup",
        "train.max_rollbacks",
        "train.detect_anomaly",
        "eval.every_epochs",
        "eval.every_steps",
    ]
)
_EXTENDABLE_SECTIONS = ("optimizer.", "schedule.")

# By the beginning of a key, the first that fits.
_REASONS = {
    "data": "it decides which samples a step has, and in which order",
    "augment": "the inputs of all steps are drawn by it",
    "model": "the weights of the run belong to that network",
    "loss": "the losses and evaluations of the run are measured by it",
    "eval": "the best evaluation of the run was chosen by it",
    "optimizer.name": "the checkpoint has the state of the optimizer that it was trained with",
    "optimizer.arguments": "the checkpoint has the state of the optimizer that was made with them",
    "optimizer.momentum": "the checkpoint has no momentum",
    "schedule.name": "the checkpoint has the state of another schedule",
    "train.ema_decay": "the moving average is that of all steps",
    "train.lookahead": "the slow weights are those of all steps",
    "train.seed": "order, augmentation and dropout are drawn from it",
    "name": "it names the run",
    "": "it decides how a step is computed",
}


def find_refusal(key: str, before: Recipe, *, old: Any, new: Any) -> str | None:
    """Return why the value of a dotted key cannot change in a run with the recipe `before`; None where it can."""
    is_listed = key in EXTENDABLE or key.startswith(_EXTENDABLE_SECTIONS)
    lacks_state = {
        "optimizer.name": True,
        "optimizer.arguments": True,
        "optimizer.momentum": before.optimizer.name == "rmsprop" and not old,
        "schedule.name": _may_have_state(str(old)) and _may_have_state(str(new)),
        "train.ema_decay": old is None or new is None,
    }
    if is_listed and not lacks_state.get(key, False):
        return None
    return next(reason for start, reason in _REASONS.items() if key.startswith(start))


def _may_have_state(schedule: str) -> bool:
    return schedule == "plateau" or is_reference(schedule)
