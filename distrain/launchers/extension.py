"""Extends a run: checks what its recipe changes, and records it so that no kill loses the old values or the new.

The recipe of a run is its newest one. What it replaced is in `status.json`: with an attempt, the values that changed
before it began, so that they hold from its first step on; and until the next attempt begins, in `changes`.
"""

from contextlib import suppress
from typing import Any

from distrain.config import Recipe, read_recipe
from distrain.config.extension import find_refusal
from distrain.errors import RunError
from distrain.messages import counted
from distrain.runs import checkpoints
from distrain.runs.directory import RunDirectory
from distrain.runs.query import warm_start_command
from distrain.runs.recipe_values import flatten_tree
from distrain.runs.status import Change, Changes


def find_changes(run: RunDirectory, recipe: Recipe) -> Changes:
    """Return what a recipe changes since the newest attempt of a run; empty where the run does not exist."""
    if not run.exists:
        return {}
    before, after = _values(read_recipe(run.recipe)), _values(recipe)
    before |= {key: change.old for key, change in run.read_status().changes.items()}
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return {key: Change(old=before.get(key), new=after.get(key)) for key in keys}


def is_extended(run: RunDirectory, recipe: Recipe) -> bool:
    """Whether a recipe changes the training of an existing run, from its newest checkpoint on."""
    return run.exists and read_recipe(run.recipe).identity != recipe.identity


def check_extension(run: RunDirectory, recipe: Recipe, *, chosen: list[str], overrides: list[str]) -> None:
    """Check that a run can be trained on by a recipe; `chosen` are the keys that the user has set.

    Raises `RunError` where it changes a key that is not among them or cannot change, and where it leaves no step.
    """
    stored = read_recipe(run.recipe)
    before, after = flatten_tree(stored.identity), flatten_tree(recipe.identity)
    instead = f"start another run from its weights by `{warm_start_command(run, overrides)}`"
    for key in [key for key in {**before, **after} if before.get(key) != after.get(key)]:
        old, new = before.get(key), after.get(key)
        if not any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in chosen):
            raise RunError(
                f"run directory {run.path} has a recipe with another {key} ({old!r}, not {new!r}); resume it with its "
                f"own by `distrain resume {run.path}`, or {instead}"
            )
        if (reason := find_refusal(key, stored, old=old, new=new)) is not None:
            raise RunError(f"{key} cannot change in run {run.path} ({old!r}, not {new!r}): {reason}; {instead}")
    if is_extended(run, recipe):
        _check_steps_left(run, recipe)


def record_changes(run: RunDirectory, recipe: Recipe) -> None:
    """Store in the status of a run what the next attempt changes, before its recipe is replaced.

    Call it with the launcher's lock. A run that had finished is then a stopped one, which `resume` trains to its new
    end. If a kill prevents the recipe from being replaced, the next call corrects the status.
    """
    if not run.exists or not run.status.exists():
        return
    status = run.read_status()
    changes = find_changes(run, recipe)
    if changes == status.changes:
        return
    status.changes = changes
    if status.state == "finished":
        status.state, status.weights_digest, status.state_digest = "stopped", None, None
    run.write_status(status)


def _check_steps_left(run: RunDirectory, recipe: Recipe) -> None:
    status, train = run.read_status(), recipe.train
    newest = checkpoints.newest_step(run.checkpoints)
    if newest == 0:
        if status.state == "finished":
            raise RunError(f"run {run.path} has no checkpoint left from which it could be trained on")
        return
    ending = _read_ending(run, newest)
    is_lifted = ending is None or f"train.{ending}" in find_changes(run, recipe) or status.lifts(ending, newest)
    if ending is not None and not is_lifted:
        value = getattr(train, ending)
        raise RunError(
            f"run {run.path} ended at step {newest} by train.{ending}={value}, which would end it again; change it "
            f"too, or lift it with --set train.{ending}=null"
        )
    epoch_steps = status.steps_per_epoch
    if epoch_steps == 0:  # a run of an earlier version: the worker checks
        return
    total = min(train.epochs * epoch_steps, train.max_steps or 2**63)
    if total < newest or (total == newest and status.state == "finished"):
        limit = f"train.max_steps={train.max_steps}" if total == train.max_steps else f"train.epochs={train.epochs}"
        key = "train.max_steps" if total == train.max_steps else "train.epochs"
        raise RunError(
            f"run {run.path} has trained {counted(newest, 'step')}, and {limit} ends it at step {total}; raise it to "
            f"train further: --set {key}=N"
        )


def _read_ending(run: RunDirectory, step: int) -> str | None:
    """Return the limit that ended the run at a checkpoint; None where none did, and where that cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        ending = checkpoints.read(checkpoints.final_path(run.checkpoints, step)).state.get("ending")
        return None if ending is None else str(ending)
    return None


def _values(recipe: Recipe) -> dict[str, Any]:
    return flatten_tree(recipe.model_dump(mode="json"))
