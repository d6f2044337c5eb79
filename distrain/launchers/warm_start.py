"""Resolves a value of model.weights that is not a file: a run, one of its checkpoints, or a bundle."""

from pathlib import Path

from distrain.config import Recipe
from distrain.errors import ModelError, RunError
from distrain.messages import nearest
from distrain.models.weight_folders import is_weights_folder
from distrain.runs import checkpoints, query
from distrain.runs.directory import RunDirectory

DOWNLOADED = ("imagenet", "imagenet-if-reachable")


def pin_weights(recipe: Recipe, run: RunDirectory, *, stored: Recipe | None, root: Path) -> Recipe:
    """Replace a run in model.weights by its checkpoint, so that the weights stay the same when that run continues.

    `stored` is the recipe of `run`, if it exists; `run` itself is never used as the source. Raises `ModelError` where
    nothing has that name.
    """
    reference = recipe.model.weights
    if reference is None or reference in DOWNLOADED or (stored is not None and stored.model.weights == reference):
        return recipe
    found = find_weights(reference, root, excluding=run)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": found})})


def find_weights(reference: str, root: Path, *, excluding: RunDirectory | None = None) -> str:
    """Return the path of the weights named by `reference`.

    A file, a folder saved by a Hugging Face library, a bundle and a checkpoint are returned unchanged. For a run, found
    by `runs.query.find_run`, it is the checkpoint chosen by `runs.query.find_checkpoint`, or, with a space and `best`,
    `last` or a step after the run, that one. Raises `ModelError` where there is none.
    """
    path = Path(reference).expanduser()
    if path.is_file() or is_weights_folder(path) or path in checkpoints.committed(path.parent):
        return reference
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
        if "there is no run" not in str(error):
            raise ModelError(f"model.weights={reference}: {error}") from None
        hint = nearest(reference, DOWNLOADED, count=1, cutoff=0.7)
        raise ModelError(f"model.weights={reference}: there is no such file, checkpoint, bundle or run{hint}") from None
    return str(found.absolute())
