"""Resolves the request for an evaluation, and its folder below the run, which is a run directory, too."""

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
    """Return the folder of an evaluation, its recipe and the request, without creating anything.

    The same request has the same folder, unless `out` gives one. Data other than that of the run is used completely:
    neither `data.val_fraction` nor `data.val_samples` applies to it. Raises `RecipeError` for invalid overrides, and
    `RunError` where `out` is the run directory of a training run.
    """
    trained = read_recipe(run.recipe)
    is_other = data is not None and Path(data).resolve() != Path(trained.data.path or "").resolve()
    whole = ["data.val_fraction=null", "data.val_samples=null"] if is_other else []
    recipe = change_recipe(trained, [*whole, *overrides], data=data)
    if recipe.model != trained.model:
        raise RunError(f"the checkpoint has the weights of model.name={trained.model.name}; remove --set model.*")
    samples: Samples = split or ("given" if is_other and recipe.data.val_fraction is None else "val")
    request = EvaluationRequest(run=str(run.path.absolute()), checkpoint=str(checkpoint.absolute()), split=samples)
    settings = "".join(map(to_json, (recipe.data, recipe.augment, recipe.eval)))
    digest = hashlib.sha256(settings.encode()).hexdigest()[:6]
    name = f"{checkpoint.name}-{samples}-{digest}"
    if out is None:
        run.check_writable(otherwise="give a folder for the evaluation with --out")
    folder = run.evaluations.absolute() / name if out is None else out.expanduser().absolute()
    found = RunDirectory(folder)
    found.check_format()
    if found.exists and isinstance(read_task(found), TrainRequest):
        raise RunError(f"--out {out} is the run directory of a training run; use another folder")
    return found, recipe, request
