"""Resolves a value of model.weights that is not a file: a run, one of its checkpoints, or a bundle."""

import json
import re
from contextlib import suppress
from pathlib import Path

import xxhash

from distrain.config import Recipe
from distrain.errors import ModelError, RunError
from distrain.messages import nearest
from distrain.models.weight_folders import is_weights_folder
from distrain.runs import checkpoints, query
from distrain.runs.checkpoints.integrity import describe_files
from distrain.runs.checkpoints.paths import MANIFEST
from distrain.runs.directory import RunDirectory
from distrain.system.files import read_whole

DOWNLOADED = ("imagenet", "imagenet-if-reachable")
WEIGHTS_DIGEST = "initial_weights_digest"  # in env.json
_WHICH = re.compile(r"(.+)(?: (best|last|\d+)|/(best|last))")  # a checkpoint after the name of a run


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
    `last` or a step after the run, or with `/best` or `/last`, that one. Raises `ModelError` where there is none.
    """
    path = Path(reference).expanduser()
    if path.is_file() or is_weights_folder(path) or path in checkpoints.committed(path.parent):
        return reference
    chosen = None if RunDirectory(path).exists else _WHICH.fullmatch(reference)
    name, which = (reference, None) if chosen is None else (chosen[1], chosen[2] or chosen[3])
    try:
        _, found, _ = query.find_checkpoint(name, root, must_be_best=False, which=which, excluding=excluding)
    except RunError as error:
        if "there is no run" not in str(error):
            raise ModelError(f"model.weights={reference}: {error}") from None
        hint = nearest(reference, DOWNLOADED, count=1, cutoff=0.7)
        raise ModelError(f"model.weights={reference}: there is no such file, checkpoint, bundle or run{hint}") from None
    return str(found.absolute())


def digest_weights(reference: str | None) -> str | None:
    """Return a digest of what model.weights names, by its content; None for what is downloaded, or is not there.

    That of a checkpoint is the digest of its manifest, which has those of its files.
    """
    if reference is None or reference in DOWNLOADED:
        return None
    path = Path(reference).expanduser()
    if (manifest := path / MANIFEST).is_file():
        files = [manifest]
    else:
        files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.is_file())
    if not files:
        return None
    digests = [entry["xxh3_128"] for entry in describe_files(files).values()]
    return xxhash.xxh3_128_hexdigest("".join(digests).encode())


def check_weights_unchanged(run: RunDirectory, recipe: Recipe) -> None:
    """Raise `RunError` where a run without a checkpoint would start again from other weights than it did at first."""
    if checkpoints.committed(run.checkpoints):
        return
    before, now = read_weights_digest(run), digest_weights(recipe.model.weights)
    if before is not None and now is not None and now != before:  # where they are gone, loading them says so
        raise RunError(
            f"model.weights={recipe.model.weights} has changed since run {run.path} started from it; bring the old "
            f"weights back, or train in a new run directory"
        )


def read_weights_digest(run: RunDirectory) -> str | None:
    """Return the digest of the weights that a run started from; None where it is not known."""
    found = None
    with suppress(RunError, OSError):  # it is written again
        found = read_whole(run.environment, json.loads)
    digest = found.get(WEIGHTS_DIGEST) if isinstance(found, dict) else None
    return None if digest is None else str(digest)
