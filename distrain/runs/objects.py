"""Keeps Python objects that a notebook gave by value in the directory of their run, for the processes of that run.

A recipe names such an object as `distrain_objects:NAME_DIGEST`, like any object of the user's code, and its pickle is
`objects/NAME_DIGEST.pkl`. The digest in the name makes it part of the recipe: a run resumes with the same bytes only.
"""

import copy
import hashlib
import os
import pickle
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from distrain.config.user_code import OBJECTS
from distrain.errors import DataError, RecipeError
from distrain.messages import type_and_first_line
from distrain.runs.directory import RunDirectory
from distrain.system.files import NotRegularError, open_regular, sync
from distrain.system.filesystem import is_own

_SUFFIX = ".pkl"
_DIGEST_CHARACTERS = 32  # of SHA-256
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class GivenModule:
    """A network that was given ready-made, as a factory: each call returns a copy, whatever the arguments are."""

    module: Any

    def __call__(self) -> Any:
        """Return the network, with the weights that it was given with."""
        return copy.deepcopy(self.module)


@dataclass(frozen=True)
class GivenDatasets:
    """Datasets that were given ready-made, as a factory of datasets: `data.source`."""

    train: Any
    val: Any

    def __call__(self, split: str, path: str | None = None) -> Any:
        """Return the dataset of a split, None where there is none; raises `DataError` for a path, which has no use."""
        if path is not None:
            raise DataError(f"the run was started with datasets as Python objects, so data {path} would be ignored")
        return {"train": self.train, "val": self.val}[split]


def name_object(name: str, content: bytes) -> str:
    """Return the name that an object with this pickle has in a recipe, after the module's name and a colon."""
    return f"{name}_{_digest(content)}"


def write_objects(run: RunDirectory, objects: Mapping[str, bytes]) -> None:
    """Write the pickles of objects by their names, readable by this user only."""
    if not objects:
        return
    run.objects.mkdir(mode=0o700, exist_ok=True)
    for name, content in objects.items():
        path = _path(run, name)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
                file.write(content)
            sync(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def read_objects(run: RunDirectory) -> dict[str, bytes]:
    """Return the pickles in the directory of a run by name, verified but not loaded: for another run of its recipe."""
    return {path.stem: _read(run, path.stem) for path in sorted(run.objects.glob(f"*{_SUFFIX}"))}


def provide_objects(run: RunDirectory) -> None:
    """Have references to objects lead into the directory of this run, from now on, in this process.

    Nothing is loaded before it is needed. Loading a pickle runs code, so this is called only where the network, the
    data or the loss of this run is built: in its workers, and to evaluate, predict with or export its network.
    """
    module = ModuleType(OBJECTS, "The objects that a run was started with.")
    load: Callable[[str], Any] = partial(_load, run, module)
    vars(module)["__getattr__"] = load
    sys.modules[OBJECTS] = module


def _load(run: RunDirectory, module: ModuleType, name: str) -> Any:
    """Return an object by its name: the `__getattr__` of the module."""
    if name.startswith("__"):
        raise AttributeError(name)
    content = _read(run, name)
    try:
        found = pickle.loads(content)
    except Exception as error:
        raise RecipeError(
            f"{OBJECTS}:{name} cannot be loaded with Python {sys.version.split()[0]} ({type_and_first_line(error)}); "
            f"use the Python and the packages with which the run was started"
        ) from error
    setattr(module, name, found)
    return found


def _read(run: RunDirectory, name: str) -> bytes:
    """Return the pickle of an object; raises `RecipeError` where it is missing, changed, or could be another user's."""
    path = _path(run, name)
    if not (is_own(run.path) and is_own(run.objects)):
        raise RecipeError(
            f"{path} is not loaded: the run belongs to another user, and a pickle would run their code as yours"
        )
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
                raise RecipeError(f"{path} is not loaded: another user owns it or can write to it; remove that")
            content = file.read()
    except FileNotFoundError:
        raise RecipeError(
            f"{OBJECTS}:{name} is a Python object that another run was started with; give it to this one, too, as in "
            f"distrain.fit(..., model=...)"
        ) from None
    except NotRegularError as error:
        raise RecipeError(f"{OBJECTS}:{name} is not loaded: {error}") from None
    if not name.endswith(f"_{_digest(content)}"):
        raise RecipeError(
            f"{path} is not loaded: it has other bytes than the object that the run was started with; restore it, or "
            f"start another run"
        )
    return content


def _path(run: RunDirectory, name: str) -> Path:
    return run.objects / f"{name}{_SUFFIX}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGEST_CHARACTERS]
