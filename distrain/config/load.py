"""Reads a recipe from YAML and --set, and reports what is wrong with it in one sentence."""

import re
import unicodedata
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distrain.config.data import Data
from distrain.config.old_names import note_old_name, rename_keys, rename_overrides
from distrain.config.recipe import Recipe
from distrain.config.validation import describe, takes_text
from distrain.config.yaml_text import YamlError, read_yaml_text
from distrain.errors import RecipeError
from distrain.messages import nearest, shown

MAX_CHARACTERS = 50  # of a recipe's name: file systems allow 255 bytes, and the start time is appended


def load_recipe(reference: str, *, overrides: list[str], data: str | None = None) -> Recipe:
    """Load a built-in recipe or a YAML file, then apply the `a.b=c` overrides in their order, then the data folder.

    Raises `RecipeError` with one sentence that names the key, the value seen and what to do.
    """
    tree, old_names = _read(reference)
    for old in old_names:
        note_old_name(old)
    return _change(tree, overrides, data)


def change_recipe(recipe: Recipe, overrides: list[str], *, data: str | None = None) -> Recipe:
    """Return a recipe with `a.b=c` overrides applied in their order, then the data folder.

    Raises `RecipeError` as `load_recipe` does.
    """
    return _change(yaml.safe_load(recipe.to_yaml()), overrides, data)


def read_recipe(path: Path) -> Recipe:
    """Read the resolved recipe of a run directory; keys of earlier versions are renamed without a note."""
    tree, _ = _read(str(path))
    return _validate(tree)


def load_data(path: Path, *, source: str, overrides: list[str]) -> Data:
    """Return the data section for the data at a path, for commands that do not train.

    `overrides` may only set `data.` keys. Raises `RecipeError` as `load_recipe` does.
    """
    for override in overrides:
        if not override.startswith("data."):
            raise RecipeError(f"--set {override} does not say how data is read; use a key such as data.target")
    recipe = load_recipe("imagefolder-resnet18", overrides=[f"data.source={source}", *overrides])
    return recipe.data.model_copy(update={"path": str(path)})


def builtin_recipes() -> dict[str, str]:
    """Return the text of each built-in recipe by its name."""
    folder: Traversable = resources.files("distrain") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8") for f in files}


def _read(reference: str) -> tuple[dict[str, Any], list[str]]:
    """Return the tree of a recipe, its keys under their new names, and the old names that were found."""
    text, name = _find(reference)
    tree = _parse_yaml(text, reference)
    tree.setdefault("name", name)
    return tree, rename_keys(tree)


def _change(tree: dict[str, Any], overrides: list[str], data: str | None) -> Recipe:
    for override in rename_overrides(overrides):
        _apply_override(tree, override)
    for old in rename_keys(tree):  # in a section that an override gives as a whole
        note_old_name(old)
    if data is not None and isinstance(section := tree.setdefault("data", {}), dict):  # else refused below
        section["path"] = str(Path(data).expanduser().absolute())
    return _validate(tree)


def _validate(tree: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(describe(error, Recipe, tree, noun="the recipe")) from None


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
            f"unknown recipe {reference!r}{nearest(reference, recipes, count=1) or ';'} `distrain recipes` lists them, "
            "and your own is named by its path, which ends in .yaml"
        )
    return recipes[reference], reference


def _as_name(stem: str) -> str:
    """Turn a file name into a recipe name: letters and digits of any script, dashes for everything else."""
    name = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", stem))
    return name.strip("-._")[:MAX_CHARACTERS] or "recipe"


def _parse_yaml(text: str, reference: str) -> dict[str, Any]:
    try:
        tree = read_yaml_text(text)
    except YamlError as error:
        raise RecipeError(f"recipe {reference} cannot be read as YAML: {error}") from None
    if tree is None:
        raise RecipeError(f"recipe {reference} is empty; `distrain recipes init digits FILE` writes one to edit")
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {reference} is {shown(tree)}, not sections such as data: and model:")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise RecipeError(f"--set {override} is not of the form section.key=value")
    parts = key.strip().split(".")
    value = _read_text_value(text) if takes_text(Recipe, parts) else _read_value(text, override)
    *parents, leaf = parts
    node: Any = tree
    for parent in parents:
        node = _step_into(node, parent, override)
    if isinstance(node, list):
        _step_into(node, leaf, override)
        node[int(leaf)] = value
    else:
        node[leaf] = value


def _read_text_value(text: str) -> str | None:
    """Return the value of a key that takes text: unchanged, unless it is null or a quoted YAML string."""
    if text.strip() == "null":
        return None
    if text.lstrip().startswith(("'", '"')):
        with suppress(YamlError):
            value = read_yaml_text(text)
            return value if isinstance(value, str) else text
    return text.strip() or text


def _read_value(text: str, override: str) -> Any:
    """Return the value of any other key: the parsed YAML, or the text unchanged if it is not YAML."""
    try:
        return read_yaml_text(text) if text else ""
    except YamlError as error:
        if text.lstrip().startswith(("[", "{")) or "\n" in text:
            raise RecipeError(
                f"--set {override} cannot be read as YAML ({error}); in a list or a mapping, text that holds other "
                'characters than letters and digits is quoted: ["a: b"]'
            ) from None
        return text


def _step_into(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise RecipeError(f"--set {override}: {key!r} is not a place in a list of {len(node)}, counted from 0")
        return node[int(key)]
    child = node.setdefault(key, {})
    if child is None:
        child = node[key] = {}
    if not isinstance(child, dict | list):
        raise RecipeError(f"--set {override}: {key!r} is a value, {shown(child)}, and has no keys of its own")
    return child
