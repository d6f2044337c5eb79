"""Resolves, checks and writes the recipe and run directory of a request before the start."""

import json
import math
from pathlib import Path

from distrain.config import Recipe, change_recipe, load_recipe, read_recipe
from distrain.config.debug_presets import DebugOptions
from distrain.config.old_names import rename_overrides
from distrain.config.profile import Profile
from distrain.data.layout.checks import check_requirements
from distrain.errors import RecipeError
from distrain.launchers.extension import check_extension, record_changes
from distrain.launchers.plan import Plan
from distrain.launchers.teacher import pin_teacher
from distrain.launchers.warm_start import (
    WEIGHTS_DIGEST,
    check_weights_unchanged,
    digest_weights,
    pin_weights,
    read_weights_digest,
)
from distrain.runs.directory import RANK_EXIT_TIMEOUT_S, RunDirectory, new_run_directory
from distrain.runs.environment import describe_environment
from distrain.runs.status import Status
from distrain.runs.stop_file import forget_stop
from distrain.runs.task import Task, TrainRequest, write_task
from distrain.system.files import write_atomically

DEFAULT_RECIPE = "digits"
RUNS = Path("runs")


def resolve_run(
    reference: str | None,
    overrides: list[str],
    data: str | None,
    path: Path | None,
    debug_options: DebugOptions,
    *,
    root: Path = RUNS,
) -> tuple[RunDirectory, Recipe, list[str]]:
    """Return the run directory, the recipe, and the changes that the debug options make in it.

    An existing run keeps its recipe, except for what `overrides` change and `launchers.extension` allows; a new one
    without a `path` is in `root`.
    """
    existing = RunDirectory(path.absolute()) if path is not None else None
    if existing is None or not existing.exists:
        requested = load_recipe(reference or DEFAULT_RECIPE, overrides=overrides, data=data)
        recipe, changes = _with_debug_options(requested, overrides, debug_options)
        run = existing or new_run_directory(recipe.name, root.absolute())
        recipe = pin_teacher(pin_weights(recipe, run, stored=None, root=root), run, stored=None, root=root)
        return run, recipe, changes
    existing.check_format()
    stored = read_recipe(existing.recipe)
    if reference:
        requested = load_recipe(reference, overrides=overrides, data=data)
    else:
        requested = change_recipe(stored, overrides, data=data)
    recipe, changes = _with_debug_options(requested, overrides, debug_options)
    recipe = pin_weights(recipe, existing, stored=stored, root=root)
    recipe = pin_teacher(recipe, existing, stored=stored, root=root)
    check_weights_unchanged(existing, recipe)
    check_extension(existing, recipe, chosen=_chosen_keys(overrides), overrides=overrides)
    return existing, recipe, changes


def resolve_runs(
    references: list[str],
    tasks: list[str],
    overrides: list[str],
    data: str | None,
    path: Path | None,
    *,
    root: Path = RUNS,
) -> list[tuple[RunDirectory, Recipe]]:
    """Return the run directory and recipe of each recipe with each of `tasks` as another `A.B=C`.

    Several runs are numbered folders in `path`, where one is given.
    """
    requested: list[str | None] = [*references] or [None]
    pairs = [(one, [*overrides, *more]) for one in requested for more in [[task] for task in tasks] or [[]]]
    is_one = path is None or len(pairs) == 1
    folders = [path if is_one or path is None else path / str(number) for number in range(len(pairs))]
    return [
        resolve_run(reference, changes, data, folder, DebugOptions(), root=root)[:2]
        for (reference, changes), folder in zip(pairs, folders, strict=True)
    ]


def check_data(recipe: Recipe, *, needs_validation: bool = True) -> list[str]:
    """Check the data before any process is started; only file names and tables are read.

    Returns a sentence for each property of valid data that the user may not expect.
    """
    return check_requirements(recipe.data, needs_validation=needs_validation)


def check_schedule(recipe: Recipe) -> None:
    """Raise `RecipeError` where the warm-up lasts for all epochs, so that the schedule's curve never begins."""
    schedule, epochs = recipe.schedule, recipe.train.epochs
    # A constant rate with a warm-up of all epochs is allowed: it is a linear rise, as in a learning rate range test.
    maximum = epochs if schedule.name == "constant" else math.nextafter(epochs, 0)
    if schedule.warmup_epochs > maximum:
        raise RecipeError(
            f"schedule.warmup_epochs={schedule.warmup_epochs:g} does not end before train.epochs={epochs}, "
            f"so the learning rate would not reach optimizer.lr; lower it, or --set schedule.warmup_epochs=0"
        )


def write_request(
    run: RunDirectory,
    recipe: Recipe,
    profile: Profile,
    plan: Plan,
    task: Task | None = None,
    *,
    keeps_stop: bool = False,
) -> None:
    """Write the files of a request, for training unless `task` is given; raises `RunError` while the run trains.

    A stop request is one for an earlier attempt, and is deleted unless `keeps_stop`.
    """
    with run.hold_trainer_lock(patience_s=RANK_EXIT_TIMEOUT_S):
        if not keeps_stop:
            forget_stop(run)
        run.stacks_request.unlink(missing_ok=True)
        run.flight_request.unlink(missing_ok=True)
        digest = None if task else read_weights_digest(run) or digest_weights(recipe.model.weights)
        weights = {} if digest is None else {WEIGHTS_DIGEST: digest}
        write_task(run, task or TrainRequest())  # before the recipe, which makes the folder a run
        replace_recipe(run, recipe)
        write_atomically(run.profile, profile.to_yaml())
        write_atomically(run.environment, json.dumps({**describe_environment(), **weights}, indent=1))
        write_atomically(
            run.plan, json.dumps({"argv": plan.argv, "env": dict(plan.env), "cwd": str(plan.cwd)}, indent=1)
        )
        if not run.status.exists():
            run.write_status(Status())


def replace_recipe(run: RunDirectory, recipe: Recipe) -> None:
    """Write the recipe of a run, and first what it changes where there is one; call it with the launcher's lock."""
    record_changes(run, recipe)
    write_atomically(run.recipe, recipe.to_yaml())


def _with_debug_options(recipe: Recipe, overrides: list[str], debug_options: DebugOptions) -> tuple[Recipe, list[str]]:
    """Return the recipe as changed by the debug options, and the changes; `overrides` take precedence."""
    chosen = _chosen_keys(overrides)
    changes = [change for change in debug_options.overrides(recipe) if not _is_chosen(change.partition("=")[0], chosen)]
    return change_recipe(recipe, changes) if changes else recipe, changes


def _chosen_keys(overrides: list[str]) -> list[str]:
    return [override.partition("=")[0].strip() for override in rename_overrides(overrides)]


def _is_chosen(key: str, chosen: list[str]) -> bool:
    return any(other == key or other.startswith(f"{key}.") for other in chosen)
