"""Owns the way from YAML and --set to a recipe, and the sentence for what is wrong in them."""

import difflib
import re
import unicodedata
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distrain.errors import RecipeError
from distrain.recipe.section import Section
from distrain.recipe.whole import Recipe

MOST_CHARACTERS = 50  # of a recipe's name: file systems take 255 bytes, and the time of the start is added


def load_recipe(reference: str, *, overrides: list[str], data: str | None = None) -> Recipe:
    """Resolve a built-in name or a YAML path, then `a.b=c` overrides in their order, then the data folder.

    Raises `RecipeError` with one sentence that names the key, the value seen and what to do.
    """
    text, name = _find(reference)
    tree = _parse_yaml(text, reference)
    tree.setdefault("name", name)
    for override in overrides:
        _apply_override(tree, override)
    if data is not None and isinstance(section := tree.setdefault("data", {}), dict):  # else refused below
        section["path"] = str(Path(data).expanduser().absolute())
    return _validate(tree)


def change_recipe(recipe: Recipe, overrides: list[str]) -> Recipe:
    """Return a recipe with `a.b=c` overrides made in it, in their order; raises as `load_recipe` does."""
    tree = yaml.safe_load(recipe.to_yaml())
    for override in overrides:
        _apply_override(tree, override)
    return _validate(tree)


def read_recipe(path: Path) -> Recipe:
    """Read the resolved recipe of a run directory."""
    return load_recipe(str(path), overrides=[])


def builtin_recipes() -> dict[str, str]:
    """Return the text of each built-in recipe by its name."""
    folder: Traversable = resources.files("distrain") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8") for f in files}


def _validate(tree: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_first_sentence(error, tree)) from None


def _find(reference: str) -> tuple[str, str]:
    path = Path(reference).expanduser()
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if not path.is_file():
            raise RecipeError(f"recipe file {reference} does not exist; `distrain recipes init digits` writes one")
        try:
            return path.read_text(encoding="utf-8"), _as_name(path.stem)
        except UnicodeDecodeError:
            raise RecipeError(f"recipe file {reference} is not UTF-8 text") from None
    recipes = builtin_recipes()
    if reference not in recipes:
        raise RecipeError(
            f"there is no recipe {reference!r}{_did_you_mean(reference, recipes)}; "
            f"`distrain recipes` lists them, and your own is given by its path, ending in .yaml"
        )
    return recipes[reference], reference


def _as_name(stem: str) -> str:
    """Return a file's name as the name of a recipe: letters and digits of any script, dashes for all else."""
    words = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", stem))
    return words.strip("-._")[:MOST_CHARACTERS] or "recipe"


def _parse_yaml(text: str, reference: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"recipe {reference} cannot be read as YAML{place}: {problem}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {reference} holds {type(tree).__name__}, not sections such as data: and model:")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override} is not of the form section.key=value")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise RecipeError(f"--set {override}: {text!r} cannot be read as a YAML value; quote it") from None
    *parents, leaf = key.strip().split(".")
    node: Any = tree
    for parent in parents:
        node = _step_into(node, parent, override)
    if isinstance(node, list):
        _step_into(node, leaf, override)
        node[int(leaf)] = value
    else:
        node[leaf] = value


def _step_into(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise RecipeError(f"--set {override}: {key!r} is not a place in a list of {len(node)}, counted from 0")
        return node[int(key)]
    child = node.setdefault(key, {})
    if child is None:
        child = node[key] = {}
    if not isinstance(child, dict | list):
        raise RecipeError(f"--set {override}: {key!r} is a value, {child!r}, and has no keys of its own")
    return child


def _first_sentence(error: ValidationError, tree: dict[str, Any]) -> str:
    detail = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1])
        return f"the recipe has no key {key}{_did_you_mean(str(detail['loc'][-1]), known)}"
    if detail["type"] == "missing":
        return f"the recipe lacks {key}, which has no default"
    if detail["type"] == "value_error":
        reason = detail["msg"].removeprefix("Value error, ")
        return reason if "." in reason.split()[0] else f"{key}: {reason}"
    reason = detail["msg"].removeprefix("Input ")
    return f"{key}={detail['input']!r}: the value {reason}" if key else f"the recipe {reason}, not {tree!r}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: type[Section] = Recipe
    for part in location:
        info = section.model_fields.get(str(part))
        if info is None or not (isinstance(info.annotation, type) and issubclass(info.annotation, Section)):
            return []
        section = info.annotation
    return list(section.model_fields)


def _did_you_mean(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
