"""Selects runs by their state, name, tags, recipes and metrics: `--filter KEY=VALUE`."""

import operator
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
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
        key, holds = _parse(text, option)
        for number, value in enumerate(find_values(readable, key, option=option)):
            kept[number] &= holds(value)
    return [overview for overview, is_kept in zip(readable, kept, strict=True) if is_kept]


def _parse(text: str, option: str) -> tuple[str, Callable[[Any], bool]]:
    """Return the key of a condition, and a function that returns whether it holds for a value."""
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise RunError(f"{option} {text} is not KEY=VALUE; for example state=finished or 'optimizer.lr<0.1'")
    key, sign, value = match.groups()
    number = _number(value)
    if sign in _ORDERS and not isinstance(number, int | float):
        raise RunError(f"{option} {text} compares with {value!r}, which is not a number; only = and != take text")
    return key, partial(_holds, sign=sign, wanted=value, number=number)


def _holds(value: Any, *, sign: str, wanted: str, number: Any) -> bool:
    found = value if isinstance(value, list) else [value]
    if sign in _ORDERS:
        numbers = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
        return any(_ORDERS[sign](value, number) for value in numbers)
    return any(_equals(value, wanted, number) for value in found) == (sign == "=")


def _equals(value: Any, wanted: str, number: Any) -> bool:
    """Whether a value is the one that was written; text may have the wildcards of file names."""
    return fnmatchcase(value, wanted) if isinstance(value, str) else bool(value == number)


def _number(text: str) -> Any:
    """Return what YAML makes of a text; numbers as `1e-3`, which YAML takes for text, are numbers here, too."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):  # `2020-99-99`, `!!int x`, `[[[`
        return text
