"""Imports the user's code: `package.module:name` in a recipe names an object in it."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distrain.errors import RecipeError
from distrain.messages import nearest
from distrain.system.exits import describe_end


def is_reference(text: str) -> bool:
    """Whether a recipe's value names the user's code."""
    return ":" in text


def load_reference(text: str, *, key: str) -> Any:
    """Import `package.module:name`; raises `RecipeError`, naming the recipe's key, where there is no such object."""
    module_name, _, attribute = text.partition(":")
    try:
        module = importlib.import_module(module_name)
    except SystemExit as error:
        raise RecipeError(
            f"{key}={text}: {describe_end(error)}; in module {module_name}, exit only below "
            '`if __name__ == "__main__":`'
        ) from None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module was found but an import in it fails: they need the full traceback
        raise RecipeError(
            f"{key}={text}: there is no module {error.name!r} here; start distrain in its folder, or install it"
        ) from None
    if not hasattr(module, attribute):
        names = [name for name in vars(module) if not name.startswith("_")]
        raise RecipeError(
            f"{key}={text}: module {module_name} has no {attribute!r}{nearest(attribute, names, count=1)}"
        )
    return getattr(module, attribute)


def find_refusal(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """Return why a factory cannot be called with these keyword arguments, or None; it is not called."""
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        return str(error)
    except ValueError:  # a factory written in C may have no signature
        return None
    return None


def add_to_sys_path(folder: Path) -> None:
    """Import the user's modules from `folder` first, as `python -m` does from the working directory."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
