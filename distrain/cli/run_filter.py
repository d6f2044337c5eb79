"""Selects runs by their state, name, tags and the values of their recipes: `--filter KEY=VALUE`."""

import operator
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml

from distrain.cli.run_table import find_labels, read_recipe_values
from distrain.errors import RunError
from distrain.messages import joined, nearest
from distrain.runs.directory import RunDirectory
from distrain.runs.liveness import read_states
from distrain.runs.query import find_fault

_CONDITION = re.compile(r"([\w.-]+)\s*(<=|>=|!=|=|<|>)\s*(.*)", re.DOTALL)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
_OWN_KEYS = ("state", "name", "tag", "recipe")


def matching(runs: list[RunDirectory], filters: Sequence[str]) -> list[RunDirectory]:
    """Return the runs for which all `filters` hold; runs that cannot be read match none.

    Raises `RunError` for a filter that is not a condition, or whose key no run has.
    """
    if not filters:
        return runs
    conditions = [_parse(text) for text in filters]
    readable = [run for run in runs if find_fault(run) is None]
    states = read_states(readable)
    values = {run.path: _values(run, states[run.path]) for run in readable}
    known = dict.fromkeys([*_OWN_KEYS, *(key for found in values.values() for key in found)])
    for key, _, _ in conditions:
        if key not in known and readable:
            hint = nearest(key, known) or f"; use {joined(_OWN_KEYS)}, or a key of the recipe"
            raise RunError(f"--filter {key}: no run has this key{hint}")
    return [run for run in readable if all(_holds(values[run.path], *condition) for condition in conditions)]


def _parse(text: str) -> tuple[str, str, str]:
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise RunError(f"--filter {text} is not KEY=VALUE; for example state=finished or 'optimizer.lr<0.1'")
    key, sign, value = match.groups()
    if sign in _ORDERS and not isinstance(_number(value), int | float):
        raise RunError(f"--filter {text} compares with {value!r}, which is not a number; only = and != take text")
    return key, sign, value


def _values(run: RunDirectory, state: str) -> dict[str, list[Any]]:
    recipe = read_recipe_values(run)
    own: dict[str, list[Any]] = {
        "state": [state],
        "name": [run.path.name],
        "tag": list(find_labels(run).tags),
        "recipe": [recipe.get("name")],
    }
    return {key: [value] for key, value in recipe.items()} | own


def _holds(values: dict[str, list[Any]], key: str, sign: str, wanted: str) -> bool:
    found = values.get(key, [])
    if sign in _ORDERS:
        numbers = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
        return any(_ORDERS[sign](value, _number(wanted)) for value in numbers)
    return any(_equals(value, wanted) for value in found) == (sign == "=")


def _equals(value: Any, wanted: str) -> bool:
    """Whether a value is the one that was written; text may have the wildcards of file names."""
    if isinstance(value, str):
        return fnmatchcase(value, wanted)
    return bool(value == _number(wanted))


def _number(text: str) -> Any:
    """Return what YAML makes of a text; numbers as `1e-3`, which YAML takes for text, are numbers here, too."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
