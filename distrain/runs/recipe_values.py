"""Reads the values of stored recipes, thousands in a second: a section that many runs share is parsed once."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeAlias

import yaml

from distrain.config.old_names import rename_keys
from distrain.errors import RecipeError
from distrain.runs.directory import RunDirectory
from distrain.system.files import read_regular

Sections: TypeAlias = Mapping[str, Mapping[str, Any]]  # values by dotted key, by the key at the top level

_MAX_VALUES = 100_000  # of a recipe, each alias counted as what it repeats: ten lines can repeat billions
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is installed
_SECTION = re.compile(r"^(?=[^\s#-])", re.MULTILINE)  # where a key at the top level begins
_ENTRY = re.compile(r"^(?=  [^\s#-])", re.MULTILINE)  # where a key below it begins


def read_sections(run: RunDirectory) -> Sections:
    """Return the sections of a run's recipe, empty where it cannot be read; equal ones may be one object."""
    with suppress(OSError, ValueError, yaml.YAMLError, RecipeError):
        text = read_regular(run.recipe)
        with suppress(ValueError, yaml.YAMLError):  # a section cannot be read without the others
            parsed = [_parse(part) for part in _SECTION.split(text) if part.strip()]
            if all(len(sections) == 1 for sections in parsed):
                return {key: values for sections in parsed for key, values in sections.items()}
        return _parse_yaml(text)
    return {}


def read_recipe_values(run: RunDirectory) -> dict[str, Any]:
    """Return the values of a run's recipe by dotted key; empty where it cannot be read."""
    return flatten(read_sections(run))


def flatten(sections: Sections) -> dict[str, Any]:
    """Return the values of all sections by dotted key."""
    return {key: value for values in sections.values() for key, value in values.items()}


def find_value(sections: Sections, key: str) -> Any:
    """Return the value of a dotted key; None where there is none."""
    return sections.get(key.partition(".")[0], {}).get(key)


def differing_keys(recipes: Sequence[Sections]) -> list[str]:
    """Return the keys whose values differ between the recipes that could be read, without those of logging."""
    readable = [recipe for recipe in recipes if recipe]
    found: list[str] = []
    for name in dict.fromkeys(name for recipe in readable for name in recipe if name != "log"):
        sections = [recipe.get(name, {}) for recipe in readable]
        distinct = list({id(section): section for section in sections}.values())
        for key in dict.fromkeys(key for section in distinct for key in section):
            values = [section.get(key) for section in distinct]
            if values.count(values[0]) < len(values):
                found.append(key)
    return found


@lru_cache(maxsize=1 << 14)
def _parse(section: str) -> Sections:
    """Return what `_parse_yaml` does; of a section that only differs from others in an entry, only that is parsed."""
    head, _, body = section.partition("\n")
    entries = [entry for entry in _ENTRY.split(body) if entry.strip()]
    if head.endswith(":") and len(entries) > 1:
        name = head[:-1]
        with suppress(ValueError, yaml.YAMLError):  # an entry cannot be read without the others
            parsed = [_parse_yaml(f"{head}\n{entry}").get(name, {}) for entry in entries]
            if all(parsed) and not any(name in values for values in parsed):  # else the section is no mapping
                return {name: {key: value for values in parsed for key, value in values.items()}}
    return _parse_yaml(section)


@lru_cache(maxsize=1 << 14)
def _parse_yaml(text: str) -> Sections:
    """Return the sections in YAML text, empty where it is no mapping; raises `ValueError` where they are endless."""
    tree = yaml.load(text, Loader=_LOADER)
    if not isinstance(tree, dict):
        return {}
    _check_size(tree)
    rename_keys(tree)
    return {str(key): flatten_tree({key: value}) for key, value in tree.items()}


def _check_size(tree: Any) -> None:
    rest, number = [tree], 0
    while rest:
        value = rest.pop()
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        number += len(parts)
        if number > _MAX_VALUES:
            raise ValueError("the recipe has too many values")
        rest += parts


def flatten_tree(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a tree of mappings by dotted key."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            values |= flatten_tree(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values
