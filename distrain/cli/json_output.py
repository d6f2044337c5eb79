"""Prints JSON for scripts."""

import json
import math

import typer
from pydantic import BaseModel


def print_json(value: object) -> None:
    """Print a value as strict JSON, in which a number that is not finite is null."""
    content = value.model_dump() if isinstance(value, BaseModel) else value
    typer.echo(json.dumps(_without_not_finite(content), indent=1, allow_nan=False))


def _without_not_finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_not_finite(item) for key, item in value.items()}
    return [_without_not_finite(item) for item in value] if isinstance(value, list | tuple) else value
