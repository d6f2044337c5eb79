"""Reads from a dataset of the user's what its samples have for targets, and what the outputs for them are called."""

from collections.abc import Iterable, Sequence
from typing import Any

from distrain.config.metrics import Target
from distrain.errors import DataError
from distrain.system.exits import place_of_code

_NAMES: dict[Target, str] = {
    "class": "the list of class names",
    "labels": "a list with a name for each label",
    "values": "a list with a name for each value",
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
