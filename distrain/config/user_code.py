"""Imports the user's own code: `package.module:name` in a recipe names an object in it."""

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
    """Whether a recipe's value names the user's own code."""
    return ":" in text


def load_reference(text: str, *, key: str) -> Any:
    """Import `package.module:name`; raises `RecipeError`, naming the recipe's key, where there is no such object."""
    module_name, _, attribute = text.partition(":")
    try:
        module = importlib.import_module(module_name)
    except SystemExit as error:
        raise RecipeError(
            f"{key}={text}: {describe_end(error)}; let module {module_name} end the program only where it is the "
            'program itself, below `if __name__ == "__main__":`'
        ) from None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module was found, and an import in it fails: that is theirs to read in full
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
    """Return why a factory cannot be called with these keyword arguments, or None; what it does is not tried."""
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        return str(error)
    except ValueError:  # a factory written in C does not tell what it takes
        return None
    return None


def add_to_sys_path(folder: Path) -> None:
    """Find the user's modules in `folder` first, as `python -m` does in the working directory."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
