"""Resolves a value of task.teacher that is a run: to one of its checkpoints."""

from pathlib import Path

from distrain.config import Recipe
from distrain.config.task import TIMM
from distrain.errors import ModelError, RunError
from distrain.runs import query
from distrain.runs.directory import BUNDLE, RunDirectory


def pin_teacher(recipe: Recipe, run: RunDirectory, *, stored: Recipe | None, root: Path) -> Recipe:
    """Replace a run in task.teacher by its checkpoint, so that the teacher stays the same when that run continues.

    `stored` is the recipe of `run`, if it exists; `run` itself is never used. Raises `ModelError` where nothing has
    that name.
    """
    reference = recipe.task.teacher
    if reference is None or reference.startswith(TIMM) or (stored is not None and stored.task.teacher == reference):
        return recipe
    found = str(_find_teacher(reference, root, excluding=run).absolute())
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"teacher": found})})


def _find_teacher(reference: str, root: Path, *, excluding: RunDirectory) -> Path:
    path = Path(reference).expanduser()
    if (path / BUNDLE).is_file():
        return path
    name, _, which = reference.rpartition(" ")
    is_chosen = bool(name) and (which in {"best", "last"} or which.isdecimal())
    try:
        _, found, _ = query.find_checkpoint(
            name if is_chosen else reference,
            root,
            must_be_best=False,
            which=which if is_chosen else None,
            excluding=excluding,
        )
    except RunError as error:
        raise ModelError(f"task.teacher={reference} is no bundle, run or timm.NAME: {error}") from None
    return found
