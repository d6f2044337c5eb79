"""Selects runs by their state, name, tags, recipes and metrics: `--filter KEY=VALUE`."""

import operator
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml

from distrain.errors import RunError
from distrain.runs.overview import Overview, find_values

_CONDITION = re.compile(r"([\w.-]+)\s*(<=|>=|!=|=|<|>)\s*(.*)", re.DOTALL)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def matching(found: list[Overview], filters: Sequence[str], *, option: str = "--filter") -> list[Overview]:
    """Return the runs for which all `filters` hold; runs that cannot be read match none.

    Raises `RunError`, which names the `option`, for a filter that is not a condition, or whose key no run has.
    """
    if not filters:
        return found
    readable = [overview for overview in found if overview.fault is None]
    kept = [True] * len(readable)
    for text in filters:
        key, sign, wanted = _parse(text, option)
        for number, value in enumerate(find_values(readable, key, option=option)):
            kept[number] &= _holds(value, sign, wanted)
    return [overview for overview, is_kept in zip(readable, kept, strict=True) if is_kept]


def _parse(text: str, option: str) -> tuple[str, str, str]:
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise RunError(f"{option} {text} is not KEY=VALUE; for example state=finished or 'optimizer.lr<0.1'")
    key, sign, value = match.groups()
    if sign in _ORDERS and not isinstance(_number(value), int | float):
        raise RunError(f"{option} {text} compares with {value!r}, which is not a number; only = and != take text")
    return key, sign, value


def _holds(value: Any, sign: str, wanted: str) -> bool:
    found = value if isinstance(value, list) else [value]
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
