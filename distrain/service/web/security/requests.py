"""Decides what a request to train may change in a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distrain.errors import DataError, RecipeError

_SECTIONS = {"optimizer", "schedule", "train", "augment", "loss"}


def check_request(
    changes: Mapping[str, Any], *, data: str | None, data_roots: tuple[Path, ...], allow_code: bool
) -> None:
    """Raise a `UserError` for a change that only the operator may make, and for data outside of `data_roots`."""
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if allow_code:
            continue
        if section not in _SECTIONS or not name or not isinstance(value, bool | int | float):
            raise RecipeError(f"set {key}: a request may set numbers in the sections {', '.join(sorted(_SECTIONS))}")
    if data is not None and not any(Path(data).resolve().is_relative_to(root.resolve()) for root in data_roots):
        raise DataError(f"data {data} is not in a folder that `distrain serve --data-root` allows")
