"""Turns Python objects into what a recipe can name: a reference to importable code, or a pickle by value.

Training happens in new processes. What they can import is named `module:name`; everything else is pickled by
cloudpickle: what a notebook's cells or the program itself define, functions inside functions, and instances.
"""

import io
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import yaml

from distrain.api.progress import find_shell
from distrain.config.user_code import OBJECTS
from distrain.errors import LaunchError, RecipeError
from distrain.messages import type_and_first_line
from distrain.runs.objects import GivenDatasets, GivenModule, name_object

# Prints which of the top-level modules on standard input a new process finds in the same place.
_FIND = """
import json, sys
from importlib.util import find_spec
def places(name):
    try:
        spec = find_spec(name)
    except Exception:
        return []
    return [] if spec is None else [spec.origin] if spec.has_location else [*(spec.submodule_search_locations or ())]
print(json.dumps([name for name, found in json.load(sys.stdin).items() if set(found) & set(places(name))]))
"""
# Keys that say how the data of a recipe is read, when other data is given in its place.
_OF_OTHER_DATA: dict[str, Any] = {
    "path": None,
    "arguments": {},
    "more": [],
    "path_column": None,
    "label_column": None,
    "delimiter": None,
    "decode_size": None,
}
_NO_PLACE = "<dynamic-code>"  # cloudpickle's name for the file of all code
_LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib")


@dataclass
class GivenObjects:
    """Changes of a recipe, as for `--set`, and the pickles of the objects that they name."""

    overrides: list[str] = field(default_factory=list)
    pickles: dict[str, bytes] = field(default_factory=dict)

    def set_value(self, key: str, value: Any) -> None:
        """Change a value of the recipe; functions and classes in it are named by reference, or given by value."""
        self.overrides.append(f"{key}={_to_yaml(self._plain(value, key), key)}")

    def _plain(self, value: Any, key: str) -> Any:
        """Return a value as YAML can write it."""
        if isinstance(value, Mapping):
            return {self._plain(name, key): self._plain(each, key) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(each, key) for each in value]
        if isinstance(value, os.PathLike):  # a path, or a run
            return os.fspath(value)
        if hasattr(value, "tolist") and hasattr(value, "dtype"):  # a number or an array of NumPy, or a tensor
            return value.tolist()
        return self.refer(value, key) if callable(value) else value

    def refer(self, value: Any, key: str) -> str:
        """Return the reference to an object: `module:name`, or a name of the run's own objects."""
        if (reference := _find_reference(value)) is not None:
            return reference
        content = _pickle(value, key)
        name = name_object(re.sub(r"\W", "", _title(value)) or "object", content)
        self.pickles[name] = content
        return f"{OBJECTS}:{name}"


def read_given(
    values: Mapping[str, Any] | None, *, data: object = None, model: Any = None, train: Any = None, val: Any = None
) -> GivenObjects:
    """Return what the arguments of `distrain.fit` change in a recipe.

    Raises `RecipeError` and `LaunchError` for what cannot be changed or pickled.
    """
    given = GivenObjects()
    if model is not None:
        given.set_value("model.name", _as_factory(model))
    if train is not None:
        if data is not None:
            raise LaunchError(f"data={data} and train= both give the data; remove one")
        for key, value in {**_OF_OTHER_DATA, **({} if val is None else {"val_fraction": None})}.items():
            given.set_value(f"data.{key}", value)
        given.set_value("data.source", GivenDatasets(train, val))
    elif val is not None:
        raise LaunchError("val= is for a dataset given with train=; give both")
    for key, value in (values or {}).items():
        given.set_value(key, value)
    return given


def _as_factory(model: Any) -> Any:
    if isinstance(model, str):
        return model
    if sys.modules.get("torch") is not None and isinstance(model, sys.modules["torch"].nn.Module):
        return GivenModule(model)
    if not callable(model):
        raise RecipeError(
            f"model={model!r:.60} is not a network: give a class, a function, a torch.nn.Module or a name"
        )
    return model


def _to_yaml(value: Any, key: str) -> str:
    """Return a value as the text of `--set`."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 30)
    except yaml.YAMLError:
        raise RecipeError(f"set {key}: {value!r:.60} is not a value of a recipe") from None
    return text.removesuffix("...\n").strip()


def _title(value: Any) -> str:
    """Return what an object is called in its reference."""
    if isinstance(value, GivenModule):
        value = value.module
    elif isinstance(value, GivenDatasets):
        value = value.train
    return str(getattr(value, "__name__", type(value).__name__))


def _find_reference(value: Any) -> str | None:
    """Return `module:name` for a function or a class that a new process can import; None for anything else."""
    name, module_name = getattr(value, "__qualname__", None), getattr(value, "__module__", None)
    if isinstance(value, str):
        return value
    if name is None or not name.isidentifier() or module_name in {None, "__main__", "builtins"}:
        return None
    module = sys.modules.get(module_name)
    if module is None or getattr(module, name, None) is not value or _find_foreign([module_name.partition(".")[0]]):
        return None
    return f"{module_name}:{name}"


def _pickle(value: Any, key: str) -> bytes:
    """Return the pickle of an object; raises `RecipeError` where it has none, such as one with an open file."""
    import cloudpickle

    base: Any = cloudpickle.Pickler
    reduce_code = base.dispatch_table[CodeType]

    def reduce_with_place(code: CodeType) -> tuple[Any, tuple[Any, ...]]:
        """Keep the file of code, which cloudpickle drops, so that an error in it can say where it is."""
        function, arguments = reduce_code(code)
        return function, tuple(_place(code) if each == _NO_PLACE else each for each in arguments)

    table = ChainMap({CodeType: reduce_with_place}, base.dispatch_table)
    stream = io.BytesIO()
    try:
        with _by_value(cloudpickle.register_pickle_by_value, cloudpickle.unregister_pickle_by_value):
            type("Pickler", (base,), {"dispatch_table": table})(stream).dump(value)
    except Exception as error:
        raise RecipeError(
            f"{key}: {value!r:.60} cannot be given by value ({type_and_first_line(error)}); define it in a module, "
            f"and give module:name"
        ) from error
    return stream.getvalue()


def _place(code: CodeType) -> str:
    """Return the file of code, or the number of the notebook's cell, such as `Cell In[3]`."""
    shell = find_shell()
    named = None if shell is None else shell.compile.format_code_name(code.co_filename)
    return code.co_filename if named is None else " ".join(named)


@contextmanager
def _by_value(register: Callable[[ModuleType], None], unregister: Callable[[ModuleType], None]) -> Iterator[None]:
    """Pickle what is in modules that a new process does not find by value during the block, too."""
    modules = [sys.modules[name] for name in _find_foreign(list(sys.modules))]
    registered = []
    try:
        for module in modules:
            register(module)
            registered.append(module)
        yield
    finally:
        for module in registered:
            unregister(module)


def _find_foreign(names: list[str]) -> list[str]:
    """Return the top-level modules among these that a new process would not find where they were imported from.

    Such are those that were found by a change of `sys.path`.
    """
    libraries = {Path(sysconfig.get_path(name)) for name in _LIBRARIES}
    places: dict[str, list[str]] = {}
    for name in names:
        module = sys.modules.get(name)
        if "." in name or name == "__main__" or not isinstance(module, ModuleType):
            continue
        found = [file] if (file := getattr(module, "__file__", None)) else [*getattr(module, "__path__", ())]
        if found and not any(Path(place).is_relative_to(library) for place in found for library in libraries):
            places[name] = [str(Path(place).absolute()) for place in found]
    if not places:
        return []
    known = subprocess.run(
        [sys.executable, "-c", _FIND], input=json.dumps(places), capture_output=True, text=True, check=False
    )
    return [name for name in places if name not in (json.loads(known.stdout) if known.returncode == 0 else ())]
