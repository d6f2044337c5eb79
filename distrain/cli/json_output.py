"""Prints JSON for scripts."""

import typer
from pydantic import BaseModel

from distrain.system.files import strict_json


def print_json(value: object) -> None:
    """Print a value as strict JSON, in which a number that is not finite is null."""
    typer.echo(strict_json(value.model_dump() if isinstance(value, BaseModel) else value, indent=1))
