"""Lists the values of recipes, and where the recipe of a run differs from the built-in one of its name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from distrain.config.load import builtin_recipes, load_recipe
from distrain.errors import RecipeError
from distrain.runs.overview import Overview
from distrain.runs.recipe_values import flatten_tree
from distrain.runs.value_formats import show_value


@dataclass(frozen=True)
class Change:
    """A value of the recipe; `original` is that of the built-in recipe of the same name where it differs, else None."""

    key: str
    value: str
    original: str | None = None


def list_recipe(overview: Overview) -> list[Change]:
    """Return the values of a run's recipe, and where they differ from the built-in recipe of its name."""
    original = read_builtin(str(overview.recipe_name))
    rows = []
    for key, value in overview.recipe.items():
        known = original.get(key, value) if original else value
        is_other = key not in {"name", "data.path"} and known != value
        rows.append(Change(key, show_value(value), show_value(known) if is_other else None))
    return rows


@lru_cache(maxsize=64)
def read_builtin(name: str) -> Mapping[str, Any]:
    """Return the values of a built-in recipe by dotted key; empty where there is none of this name."""
    if name not in builtin_recipes():
        return {}
    try:
        recipe = load_recipe(name, overrides=[])
    except RecipeError:  # one that needs a value of the user
        return {}
    return flatten_tree(json.loads(recipe.model_dump_json()))
