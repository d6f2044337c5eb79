"""Imports the user's code: `package.module:name` in a recipe names an object in it."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from distrain.errors import RecipeError
from distrain.messages import did_you_mean, joined, shown
from distrain.system.exits import describe_end

MAX_NAMES = 6  # of a module, in a hint
OBJECTS = "distrain_objects"  # the module of the objects that a notebook gave to its run: `distrain.runs.objects`


def is_reference(text: str) -> bool:
    """Whether a recipe's value names the user's code."""
    return ":" in text


def load_reference(text: str, *, key: str) -> Any:
    """Import `package.module:name`; raises `RecipeError`, naming the recipe's key, where there is no such object."""
    module_name, _, attribute = text.partition(":")
    if (fault := _find_fault(module_name, attribute)) is not None:
        raise RecipeError(f"{key}={text}: {fault}")
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
        if module_name == OBJECTS:
            raise RecipeError(
                f"{key}={text}: this is a Python object that a notebook gave to its run, and nothing else has it; give "
                f"it again, or name one in a module of yours"
            ) from None
        raise RecipeError(
            f"{key}={text}: there is no module {error.name!r} here; start distrain in its folder, or install it"
        ) from None
    if not hasattr(module, attribute):
        raise RecipeError(f"{key}={text}: module {module_name} has no {attribute!r}{_hint(module, attribute)}")
    return getattr(module, attribute)


def _find_fault(module_name: str, attribute: str) -> str | None:
    """Return why this is not the name of a module, or None; often it is a file name."""
    path = Path(module_name)
    if path.suffix == ".py" and path.is_file():
        where = "" if path.parent == Path() else f"start distrain in {path.parent}, with "
        return f"name the module, not its file: {where}{path.stem}:{attribute}"
    if not all(part.isidentifier() for part in module_name.split(".")):
        return f"{module_name!r} is not the name of a module; use package.module:name"
    return None


def _hint(module: ModuleType, attribute: str) -> str:
    """Return the names in a module that are most like `attribute`, or else those that it defines."""
    names = [name for name, value in vars(module).items() if not (name.startswith("_") or inspect.ismodule(value))]
    in_lower_case = {name.lower(): name for name in names}
    if close := difflib.get_close_matches(attribute.lower(), in_lower_case):
        return did_you_mean([in_lower_case[name] for name in close])
    own = [name for name in names if getattr(vars(module)[name], "__module__", None) == module.__name__]
    return f"; it defines {joined(own[:MAX_NAMES], last='and')}" if own else ""


def make_part(name: str, arguments: Mapping[str, Any], *, key: str) -> Any:
    """Import the factory `package.module:name` and call it with its arguments.

    Raises `RecipeError`, naming the recipe's key, where there is no such factory or it does not accept them; errors
    raised inside it are not changed.
    """
    return load_factory(name, arguments, key=key)(**arguments)


def load_factory(name: str, arguments: Mapping[str, Any], *, key: str, given: Sequence[str] = ()) -> Callable[..., Any]:
    """Import a factory as `make_part` does, and check its signature without calling it.

    `given` names what it is called with before the arguments of the recipe.
    """
    factory: Any = load_reference(name, key=key)
    if not callable(factory):
        raise RecipeError(f"{key}={name} is {factory!r:.60}; name a function or a class")
    if (refusal := find_refusal(factory, arguments, *given)) is not None:
        before = "".join(f"{word}, " for word in given)
        raise RecipeError(f"{key}={name} cannot be called with ({before}**{shown(dict(arguments))}): {refusal}")
    made: Callable[..., Any] = factory
    return made


def find_refusal(factory: Callable[..., Any], arguments: Mapping[str, Any], *given: object) -> str | None:
    """Return why a factory cannot be called with these keyword arguments after `given`, or None; it is not called."""
    try:
        inspect.signature(factory).bind(*given, **arguments)
    except TypeError as error:
        return str(error)
    except ValueError:  # a factory written in C may have no signature
        return None
    return None


def takes_argument(factory: Callable[..., Any], name: str) -> bool:
    """Whether a factory can be called with a keyword argument of this name, by its signature."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a factory written in C may have no signature
        return True
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_all or (name in parameters and parameters[name].kind in by_name)


def add_to_sys_path(*folders: Path) -> None:
    """Import the user's modules from `folders` first, as `python -m` does from the working directory."""
    first = [str(folder) for folder in folders]
    sys.path[:] = first + [entry for entry in sys.path if entry not in first]
