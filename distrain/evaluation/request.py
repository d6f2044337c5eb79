"""Resolves the request for an examination, and its folder below the run: a run directory like any other."""

import hashlib
from pathlib import Path
from typing import Literal

from distrain.config import Recipe, change_recipe, read_recipe
from distrain.errors import RunError
from distrain.runs.directory import RunDirectory
from distrain.runs.task import EvaluationRequest, Samples, TrainRequest, read_task
from distrain.system.files import to_json


def resolve(
    run: RunDirectory,
    checkpoint: Path,
    *,
    split: Literal["train", "val"] | None,
    overrides: list[str],
    data: str | None,
    out: Path | None = None,
) -> tuple[RunDirectory, Recipe, EvaluationRequest]:
    """Return the folder of an examination, its recipe and the request; nothing is made.

    The same question has the same folder, unless `out` names one. Other data than the run's own is used whole:
    neither `data.val_fraction` nor `data.val_samples` applies to it. Raises `RecipeError` for what the recipe
    refuses, and `RunError` for an `out` that is a training.
    """
    trained = read_recipe(run.recipe)
    is_other = data is not None and Path(data).resolve() != Path(trained.data.path or "").resolve()
    whole = ["data.val_fraction=null", "data.val_samples=null"] if is_other else []
    recipe = change_recipe(trained, [*whole, *overrides], data=data)
    if recipe.model != trained.model:
        raise RunError(f"the checkpoint has the weights of model.name={trained.model.name}; leave out --set model.*")
    wanted: Samples = split or ("given" if is_other and recipe.data.val_fraction is None else "val")
    request = EvaluationRequest(run=str(run.path.absolute()), checkpoint=str(checkpoint.absolute()), split=wanted)
    question = "".join(map(to_json, (recipe.data, recipe.augment, recipe.eval)))
    mark = hashlib.sha256(question.encode()).hexdigest()[:6]
    name = f"{checkpoint.name}-{wanted}-{mark}"
    if out is None:
        run.check_writable(otherwise="name a folder for the evaluation with --out")
    folder = run.evaluations.absolute() / name if out is None else out.expanduser().absolute()
    found = RunDirectory(folder)
    found.check_format()
    if found.exists and isinstance(read_task(found), TrainRequest):
        raise RunError(f"--out {out} is the run directory of a training; name another folder")
    return found, recipe, request
