"""Owns what is asked of an examination, and its folder below the run: a run directory like any other."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from distrain.recipe import Recipe, load_recipe
from distrain.rundir import RunDirectory, write_atomically

Split = Literal["train", "val"]


class Order(BaseModel):
    """The checkpoint to examine, and on which samples: `examination.json`, which makes a worker examine, not train."""

    run: str
    checkpoint: str
    split: Split


def resolve(
    run: RunDirectory, checkpoint: Path, *, split: Split, overrides: list[str], data: str | None
) -> tuple[RunDirectory, Recipe, Order]:
    """Return the folder of an examination, its recipe and the order; nothing is made.

    The same question has the same folder. Raises `RecipeError` for what the recipe refuses.
    """
    recipe = load_recipe(str(run.recipe), overrides=overrides, data=data)
    order = Order(run=str(run.path.absolute()), checkpoint=str(checkpoint.absolute()), split=split)
    question = f"{recipe.data.model_dump_json()}{recipe.augment.model_dump_json()}{recipe.eval.model_dump_json()}"
    mark = hashlib.sha256(question.encode()).hexdigest()[:6]
    return RunDirectory(run.evaluations.absolute() / f"{checkpoint.name}-{split}-{mark}"), recipe, order


def write_order(folder: RunDirectory, order: Order) -> None:
    """Ask for the examination; an older answer is taken away."""
    folder.findings.unlink(missing_ok=True)
    write_atomically(folder.examination, order.model_dump_json(indent=1))


def read_order(folder: RunDirectory) -> Order:
    """Read what is asked for."""
    return Order.model_validate_json(folder.examination.read_text())
