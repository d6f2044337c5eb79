"""Reads files of weights saved by any program, without running code from them."""

import argparse
import json
import pathlib
import pickle
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors.torch import load_file

from distrain.errors import ModelError
from distrain.messages import first_line, nearest
from distrain.models.weight_folders import IN_FOLDERS, INDEX
from distrain.tensors.program_files import describe_program

SAFETENSORS = ".safetensors"
WORDS = ("imagenet", "imagenet-if-reachable")  # values of model.weights that are not a path
_NOT_WEIGHTS = "is not a file that torch.save wrote, or is damaged"
MAX_NAMED = 3  # of the Python objects that a refused file names

# Plain data in old files beside the tensors. Unpickling it runs no code.
PLAIN: list[Any] = [
    argparse.Namespace,
    defaultdict,
    *(dict, list, int, float),  # the factories of a defaultdict
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
    (scalar, "numpy.core.multiarray.scalar"),  # its name before numpy 2
    (scalar, "numpy._core.multiarray.scalar"),
    (pathlib.PurePosixPath, "pathlib.PosixPath"),  # in the arguments of a command
    (pathlib.PurePosixPath, "pathlib._local.PosixPath"),  # the same in Python 3.13
    (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
]


def read_content(path: Path, *, title: str) -> Any:
    """Return the content of a .pth, .pt, .bin or .safetensors file, or of a folder that Hugging Face's libraries saved.

    `title` is its name in messages. Raises `ModelError` for a file that cannot be read, and for one that could run
    code.
    """
    if path.is_dir():
        return _read_folder(path, title=title)
    if not path.is_file():
        raise ModelError(f"{title}: there is no such file{nearest(str(path), WORDS, count=1, cutoff=0.7)}")
    if path.suffix == SAFETENSORS:
        try:
            return load_file(path)
        except Exception as error:  # noqa: BLE001 - safetensors raises its own types of exceptions
            raise ModelError(f"{title} cannot be read as safetensors: {first_line(error)}") from None
    if (program := describe_program(path)) is not None:
        raise ModelError(f"{title} is {program}")
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message recommends disabling this protection
        names = _objects_in(path)
        if not names and "global" not in str(error).lower():
            raise ModelError(f"{title} {_NOT_WEIGHTS}") from None
        shown = ", ".join(names[:MAX_NAMED]) or "of unknown classes"
        raise ModelError(
            f"{title} is a pickle of Python objects ({shown}), which could run code when read, and is refused; if you "
            f"trust it, load it where its code is and save the weights: torch.save(model.state_dict(), 'weights.pth')"
        ) from None
    except OSError as error:
        raise ModelError(f"{title} cannot be read: {first_line(error)}") from None
    except Exception:  # noqa: BLE001 - torch, pickle and zip raise exceptions of many types, with internal messages
        raise ModelError(f"{title} {_NOT_WEIGHTS}") from None


def kind_of(value: Any) -> str:
    """Describe a value in a file briefly."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping | list | tuple | set):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _read_folder(folder: Path, *, title: str) -> Any:
    for name in IN_FOLDERS:
        if (folder / name).is_file():
            return read_content(folder / name, title=title)
        if (index := folder / f"{name}{INDEX}").is_file():
            try:
                parts = {str(part) for part in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            except (OSError, ValueError, KeyError, AttributeError):
                raise ModelError(f"{title}: {index.name} cannot be read as the index of its parts") from None
            tensors: dict[str, Any] = {}
            for part in sorted(parts):
                if Path(part).name != part:
                    raise ModelError(f"{title}: {index.name} names {part}, which is not a file of that folder")
                tensors |= read_content(folder / part, title=f"{title}: its part {part}")
            return tensors
    raise ModelError(f"{title} is a folder without {' or '.join(IN_FOLDERS)}")


def _objects_in(file: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals(PLAIN):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # noqa: BLE001 - a file older than torch 1.6, or not from torch: its names are unknown
        return []
