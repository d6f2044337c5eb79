"""Opens files of arrays as sources: NumPy's .npz, torch's .pt and .safetensors."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from distrain.config.data import Data
from distrain.config.metrics import Target
from distrain.data.layout.array_files import array_file, prefixes, unreadable
from distrain.data.sources.base import Source, TensorSource
from distrain.errors import DataError
from distrain.messages import counted
from distrain.tensors.program_files import describe_program


def read_tensors(config: Data) -> dict[str, Source]:
    """Read images uint8 [n, channels, height, width] and their labels from the file `config.path` into memory.

    Labels are whole numbers [n] for classes, 0 and 1 [n, labels] for labels, numbers [n] or [n, values] for values.
    `classes` may name the outputs: a list of strings, in the metadata of a .safetensors file as JSON.
    """
    path = array_file(config)
    try:
        arrays = _READERS[path.suffix.lower()](path)
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise unreadable(path, error) from None
    except pickle.UnpicklingError:
        raise DataError(
            f"array file {path} holds more than tensors, lists and strings; save a dict of tensors"
        ) from None
    if not isinstance(arrays, dict):
        raise DataError(f"array file {path} holds {type(arrays).__name__}, not a dict of tensors by name")
    found = {
        split: (_images(arrays, f"{prefix}images", path), _labels(arrays, f"{prefix}labels", path, config.target))
        for split, prefix in prefixes(path, arrays, config).items()
    }
    for split, (images, labels) in found.items():
        if len(images) != len(labels):
            raise DataError(
                f"array file {path} has {counted(len(images), 'image')} but {counted(len(labels), 'label')} for {split}"
            )
    classes = _classes(arrays, path, config.target, [labels for _, labels in found.values()])
    try:
        return {s: TensorSource(images, labels, classes, target=config.target) for s, (images, labels) in found.items()}
    except DataError as error:
        raise DataError(f"array file {path}: {error}") from None


def _read_npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_pt(path: Path) -> Any:
    if (program := describe_program(path)) is not None:
        raise DataError(f"array file {path} is {program}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        named = (file.metadata() or {}).get("classes")
    return arrays if named is None else {**arrays, "classes": json.loads(named)}


_READERS = {".npz": _read_npz, ".pt": _read_pt, ".safetensors": _read_safetensors}


def _images(arrays: dict[str, Any], name: str, path: Path) -> torch.Tensor:
    images = _tensor(arrays, name, path)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(f"array file {path}: {name} is {_kind(images)}; use uint8 [n, channels, height, width]")
    if images.shape[1] > 4 and images.shape[3] <= 4:
        raise DataError(
            f"array file {path}: {name} is {_kind(images)}, with the channels last; move them before the height"
        )
    return images.contiguous()


def _labels(arrays: dict[str, Any], name: str, path: Path, target: Target) -> torch.Tensor:
    labels = _tensor(arrays, name, path)
    is_whole = not labels.is_floating_point() and not labels.is_complex()
    if target == "class":
        if not is_whole or labels.ndim != 1:
            raise DataError(
                f"array file {path}: {name} is {_kind(labels)}; use whole numbers [n] for classes, for other targets "
                f"--set data.target=labels or data.target=values"
            )
        return labels.long()
    if target == "values" and labels.ndim == 1:
        labels = labels.unsqueeze(1)
    if labels.ndim != 2 or labels.is_complex():
        raise DataError(
            f"array file {path}: {name} is {_kind(labels)}; data.target={target} needs numbers [n, {target}]"
        )
    return labels.float()


def _classes(arrays: dict[str, Any], path: Path, target: Target, labels: list[torch.Tensor]) -> list[str]:
    if "classes" in arrays:
        names = arrays["classes"]
        names = names.tolist() if isinstance(names, np.ndarray) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"array file {path}: classes is {names!s:.60}, not a list of names")
        return names
    if target == "class":
        return [str(number) for number in range(max((int(part.max()) for part in labels if len(part)), default=-1) + 1)]
    return [f"label_{number}" for number in range(labels[0].shape[1])]


def _tensor(arrays: dict[str, Any], name: str, path: Path) -> torch.Tensor:
    array = arrays[name]
    try:
        return array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
    except TypeError:
        seen = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"array file {path}: {name} is {seen}, not an array of numbers") from None


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
