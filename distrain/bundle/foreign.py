"""Owns reading files of weights that other programs saved, without ever running code that they name."""

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors.torch import load_file

from distrain.checkpoint.tensors import Tensors
from distrain.errors import BundleError, ModelError
from distrain.models.heads import find_head
from distrain.models.zoo import build_model
from distrain.recipe import Model

ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")  # where weights stand
PREFIXES = ("module.", "_orig_mod.")  # of nn.DataParallel and its like, and of torch.compile
NAMED_AT_MOST = 3  # of the Python objects that a refused file names

# Plain data that old files carry beside the tensors. Made from a pickle, none of it runs code.
PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
    (scalar, "numpy.core.multiarray.scalar"),  # its name before numpy 2
    (scalar, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True)
class Foreign:
    """The weights of a file by their names in the plain model, and what else it held."""

    tensors: Tensors
    entry: str | None  # the key under which they stood, None where they were the file
    prefixes: tuple[str, ...]  # taken off their names
    facts: dict[str, str | int | float | bool]  # epoch, accuracy and the like
    left: dict[str, str]  # what was not taken, and what it is

    @property
    def num_parameters(self) -> int:
        """How many numbers the floating-point tensors hold, weights and buffers."""
        return sum(tensor.numel() for tensor in self.tensors.values() if tensor.is_floating_point())


@dataclass(frozen=True)
class Fit:
    """How the names and shapes of a file go with those of a model."""

    num_classes: int
    missing: list[str]  # in the file
    unexpected: list[str]  # by the model
    misshaped: list[tuple[str, list[int], list[int]]]  # name, shape in the file, shape in the model
    head: str

    @property
    def is_good(self) -> bool:
        """Whether `model.weights` takes the file: another head is replaced there, and what is too much goes unread."""
        return all(name.rpartition(".")[0] == self.head for name in [*self.missing, *(m[0] for m in self.misshaped)])


def read_foreign(file: Path) -> Foreign:
    """Read a .pth, .pt, .bin or .safetensors file of weights; raises `BundleError` for one that holds none, or code."""
    content = _load(file)
    found, entry = content, None
    if not _is_weights(content):
        entry = _find_entry(content)
        if entry is None:
            raise BundleError(f"{file} holds no tensors by name{_contents(content)}; save the model's state_dict()")
        found = content[entry]
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    left = {name: _kind(value) for name, value in found.items() if name not in tensors}
    facts: dict[str, str | int | float | bool] = {}
    for key, value in content.items() if entry is not None else ():
        plain = _plain(value)
        if key == entry:
            continue
        if plain is None:
            left[str(key)] = _kind(value)
        else:
            facts[str(key)] = plain
    tensors, prefixes = _strip(tensors)
    return Foreign(tensors, entry, prefixes, facts, left)


def fit(foreign: Foreign, name: str, *, num_classes: int | None) -> Fit:
    """Compare the weights with a model's; without `num_classes` it has as many as the file's head has outputs.

    Raises `ModelError` for a model that nobody knows.
    """
    shapes = {key: list(tensor.shape) for key, tensor in foreign.tensors.items()}
    first = next((shape for shape in shapes.values() if len(shape) == 4), None)  # [out, in, height, width]
    in_channels = 3 if first is None else first[1]
    wanted = num_classes
    if wanted is None:
        head, _ = find_head(_build(name, 10, in_channels), name=name)
        wanted = shapes.get(f"{head}.weight", [1000])[0]
    model = _build(name, wanted, in_channels)
    head, _ = find_head(model, name=name)
    expected = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    return Fit(
        num_classes=wanted,
        missing=[key for key in expected if key not in shapes],
        unexpected=[key for key in shapes if key not in expected],
        misshaped=[(k, shapes[k], shape) for k, shape in expected.items() if k in shapes and shapes[k] != shape],
        head=head,
    )


def _build(name: str, num_classes: int, in_channels: int) -> torch.nn.Module:
    try:
        return build_model(Model(name=name, weights=None), num_classes=num_classes, in_channels=in_channels)
    except TypeError as error:
        raise ModelError(f"{name} cannot be built with num_classes={num_classes}: {error}") from None


def _load(file: Path) -> Any:
    if not file.is_file():
        raise BundleError(f"there is no file {file}")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except Exception as error:  # noqa: BLE001 - safetensors has exceptions of its own
            raise BundleError(f"{file} cannot be read as safetensors: {error}") from None
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(file, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = _objects_in(file)
        if not names and "global" not in str(error).lower():
            raise BundleError(f"{file} is not a file that torch.save wrote, or is damaged") from None
        shown = ", ".join(names[:NAMED_AT_MOST]) or "of unknown classes"
        raise BundleError(
            f"{file} is a pickle of Python objects ({shown}), which could run code when read, and is refused; if you "
            f"trust it, load it where its code is and save the weights: torch.save(model.state_dict(), 'weights.pth')"
        ) from None
    except Exception as error:  # noqa: BLE001 - torch, pickle and zip each have exceptions of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BundleError(f"{file} cannot be read as a file of weights: {reason}") from None


def _objects_in(file: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals(PLAIN):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # noqa: BLE001 - a file of before torch 1.6, or none at all: it names nothing that can be told
        return []


def _is_weights(content: Any) -> bool:
    """Whether most entries are tensors by name: some files put a counter among them."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return False
    return 2 * sum(isinstance(value, torch.Tensor) for value in content.values()) > len(content) > 0


def _find_entry(content: Any) -> str | None:
    if not isinstance(content, Mapping):
        return None
    candidates = [key for key, value in content.items() if isinstance(key, str) and _is_weights(value)]
    known = [key for key in ENTRIES if key in candidates]
    return known[0] if known else candidates[0] if len(candidates) == 1 else None


def _strip(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    stripped: list[str] = []
    while prefix := next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        stripped.append(prefix)
    return tensors, tuple(stripped)


def _plain(value: Any) -> str | int | float | bool | None:
    """Return a number or a word as Python's own, None for anything else."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    return value if isinstance(value, str | int | float | bool) else None


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping | list | tuple | set):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _contents(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f", but {_kind(content)}"
    return f", but {', '.join(f'{key} ({_kind(value)})' for key, value in list(content.items())[:6])}"
