"""Reads from a dataset of the user's what its samples have for targets, and writes targets as text."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distrain.config.metrics import Target
from distrain.errors import DataError
from distrain.system.exits import place_of_code

_NAMES: dict[Target, str] = {
    "class": "the list of class names",
    "labels": "a list with a name for each label",
    "values": "a list with a name for each value",
    "mask": "the list of the names of the classes of pixels",
}


def read_outputs(dataset: Any, *, source: str) -> tuple[Target, Sequence[str]]:
    """Return `dataset.target`, a class where there is none, and `dataset.classes`.

    Raises `DataError`, which calls the dataset `source`, for another target and for what is not a list of names.
    """
    target: Target = getattr(dataset, "target", "class")
    if target not in _NAMES:
        raise DataError(f"data.source={source}: the dataset's `target` is {target!r}; use {', '.join(_NAMES)}")
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        has = "no `classes`" if classes is None else f"`classes` {classes!r:.60}"
        place = place_of_code(type(dataset))
        raise DataError(f"data.source={source}: the dataset has {has}{place}; give it `classes`, {_NAMES[target]}")
    names: list[str] = classes.tolist() if hasattr(classes, "tolist") else list(classes)
    if not names:
        raise DataError(f"data.source={source}: the dataset's `classes` is empty; give it {_NAMES[target]}")
    return target, names


def format_target(value: np.generic | np.ndarray[Any, Any], target: Target, classes: Sequence[str]) -> str:
    """Return a target, or a prediction in its form, as text: of a class its name, of mixed classes their shares.

    `value` is the number of a class, or an array with a float for each of the `classes`: the share of the class, 0 or 1
    for a label, or the value; or a mask, of which the shares of the classes are named.
    """
    numbers = np.atleast_1d(value)
    if target == "mask":
        shares = np.bincount(numbers.ravel(), minlength=len(classes))[: len(classes)] / numbers.size
        named = sorted(zip(map(str, classes), shares.tolist(), strict=True), key=lambda part: -part[1])
        return ", ".join(f"{share:.0%} {name}" for name, share in named if share) or "none"
    if target == "class" and np.issubdtype(numbers.dtype, np.integer):
        return str(classes[int(numbers[0])])
    named = list(zip(map(str, classes), numbers.tolist(), strict=True))
    if target == "values":
        return ", ".join(f"{name} {number:.4g}" for name, number in named)
    there = [(name, share) for name, share in named if share]
    if target == "labels":
        return ", ".join(name for name, _ in there) or "none"
    if len(there) == 1:
        return there[0][0]
    return "mixed: " + ", ".join(f"{share:.1%} {name}" for name, share in sorted(there, key=lambda part: -part[1]))
