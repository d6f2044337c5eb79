"""Reads the parameters of a sweep: which keys of a recipe vary, and in which ranges.

`log(1e-4, 1)` and `uniform(0, 0.5)` are ranges of numbers, `int(1, 8)` one of whole numbers, both ends included;
`[resnet18, resnet34]` are choices.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import yaml

from distrain.config.yaml_text import YamlError, read_yaml_text
from distrain.errors import RecipeError
from distrain.messages import nearest, shown

Kind = Literal["log", "uniform", "int", "choices"]
Params: TypeAlias = Mapping[str, Any]  # values by dotted key of the recipe

_CALL = re.compile(r"\s*([a-z_]\w*)\s*\((.*)\)\s*", re.DOTALL)
_RANGES = ("log", "uniform", "int")
_FORMS = "use log(1e-4, 1), uniform(0, 1), int(1, 8) or a list of choices such as [resnet18, resnet34]"
_DIGITS = 6  # significant, of a suggested number


@dataclass(frozen=True)
class Parameter:
    """A key of the recipe that varies: from `low` to `high`, or over `choices`."""

    key: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values at the ends of the range, or all choices."""
        if self.kind == "choices":
            return self.choices
        return tuple(int(end) if self.kind == "int" else end for end in (self.low, self.high))

    @property
    def range(self) -> Any:
        """The range as text, or the list of choices: what `read_parameter` reads back."""
        low, *_, high = self.examples
        return list(self.choices) if self.kind == "choices" else f"{self.kind}({low}, {high})"

    def rounded(self, value: Any) -> Any:
        """Return a suggested number with at most `_DIGITS` significant digits, which people can read and type."""
        if self.kind in {"int", "choices"}:
            return value
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


def read_parameters(given: Mapping[str, Any] | Sequence[str]) -> tuple[Parameter, ...]:
    """Read parameters as `KEY=RANGE`, or as ranges by key; raises `RecipeError` for an invalid one."""
    pairs = list(given.items()) if isinstance(given, Mapping) else [_split(text) for text in given]
    found = tuple(read_parameter(key, value) for key, value in pairs)
    if not found:
        raise RecipeError("a sweep needs a parameter: --param optimizer.lr='log(1e-4, 1)'")
    keys = [parameter.key for parameter in found]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise RecipeError(f"--param {twice} is given twice; remove one")
    return found


def read_parameter(key: str, value: Any) -> Parameter:
    """Read the range, as text, or the choices, as a list or text, of one key."""
    option = f"--param {key}={value if isinstance(value, str) else shown(value)}"
    if isinstance(value, str):
        if (call := _CALL.fullmatch(value)) is not None:
            return _read_range(key, call[1], call[2], option)
        try:
            value = read_yaml_text(value)
        except YamlError as error:
            raise RecipeError(f"{option} cannot be read ({error}); {_FORMS}") from None
    if not isinstance(value, list | tuple):
        raise RecipeError(f"{option} is one value, not a range; {_FORMS}")
    choices = tuple(value)
    if len(choices) < 2 or any(choice in choices[:number] for number, choice in enumerate(choices)):
        raise RecipeError(f"{option} needs two different choices or more, each once; fix one value with --set")
    return Parameter(key, "choices", choices=choices)


def as_overrides(params: Params) -> list[str]:
    """Return the values as `KEY=VALUE`, as --set takes them."""
    return [f"{key}={as_text(value)}" for key, value in params.items()]


def as_text(value: Any) -> str:
    """Return a value as YAML on one line, which reads back to an equal value."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise RecipeError(f"--param {text} is not of the form KEY=RANGE, such as optimizer.lr=log(1e-4, 1)")
    return key.strip(), value.strip()


def _read_range(key: str, kind: str, inner: str, option: str) -> Parameter:
    if kind not in _RANGES:
        raise RecipeError(f"{option}: there is no range {kind}{nearest(kind, _RANGES, count=1)}; {_FORMS}")
    try:
        ends = [float(part) for part in inner.split(",")]
        low, high = ends
    except ValueError:
        raise RecipeError(f"{option}: {kind} takes two numbers, the lowest and the highest value") from None
    if not all(map(math.isfinite, ends)):
        raise RecipeError(f"{option}: both ends must be finite numbers")
    if not low < high:
        raise RecipeError(f"{option}: the lowest value, {low:g}, must be less than the highest, {high:g}")
    if kind == "log" and low <= 0:
        raise RecipeError(f"{option}: the ends of log must be greater than 0; use uniform for a range from {low:g} on")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise RecipeError(f"{option}: the ends of int must be whole numbers")
    return Parameter(key, kind, low, high)  # type: ignore[arg-type]  # it is one of `_RANGES`
