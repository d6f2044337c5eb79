"""Owns checkpoints: written whole or not at all, verified before they are read, and never able to run code.

A checkpoint is a folder `step-N`: the tensors in shards of torch.distributed.checkpoint, `state.json` with everything
that is a number or a word, and MANIFEST.json with the size and the digest of every other file. It is written as
`step-N.tmp` and renamed once it is whole and on disk; only renamed folders are ever read.
"""

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor

from distrain.errors import CheckpointError
from distrain.rundir import write_atomically
from distrain.world import World

Tensors = dict[str, torch.Tensor]

_STATE = "state.json"
_MANIFEST = "MANIFEST.json"
_METADATA = ".metadata"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: `state` is the JSON part, the tensors are read by `load_tensors`."""

    path: Path
    step: int
    state: dict[str, Any]


def gather_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, average: Tensors) -> Tensors:
    """Return all tensors of the training by name.

    `model.<name>`, `optimizer.<parameter's name>.<key>`, and `average.<name>` for the moving averages.
    """
    tensors: Tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def save(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Tensors,
    state: dict[str, Any],
    keep_last: int,
    world: World,
) -> None:
    """Write checkpoint `step-N` below `folder`, commit it by rename, then delete all but the newest `keep_last`.

    All ranks call it together. Raises `CheckpointError` where it cannot be written; older checkpoints stay.
    """
    final = folder / _name(step)
    draft = final.with_suffix(".tmp")
    if world.is_main:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    world.barrier()
    try:
        with _one_process_is_meant():
            save_shards(
                gather_tensors(model, optimizer, average),
                storage_writer=FileSystemWriter(draft, sync_files=True),
                no_dist=world.size == 1,
            )
        if world.is_main:
            write_atomically(draft / _STATE, json.dumps({"step": step, **state}, indent=1))
            _commit(draft, final)
            for old in committed(folder)[:-keep_last]:
                shutil.rmtree(old)
    except (OSError, CheckpointException) as error:
        raise CheckpointError(f"checkpoint {final} could not be written: {error}") from error
    world.barrier()


def committed(folder: Path) -> list[Path]:
    """Return the committed checkpoints below `folder`, the oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.removeprefix("step-").isdecimal())


def newest_good(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose files all have their digests, and what was wrong with the newer ones.

    What is wrong is moved to `quarantine/` beside it, so that it is looked at once and not lost.
    """
    complaints: list[str] = []
    for path in reversed(committed(folder)):
        fault = find_fault(path)
        if fault is None:
            state = json.loads((path / _STATE).read_text())
            return Checkpoint(path, state["step"], state), complaints
        quarantine = folder / "quarantine" / path.name
        shutil.rmtree(quarantine, ignore_errors=True)
        quarantine.parent.mkdir(exist_ok=True)
        path.replace(quarantine)
        complaints.append(f"checkpoint {path.name} is not used: {fault}; it was moved to {quarantine}")
    return None, complaints


def read(folder: Path, step: int) -> Checkpoint:
    """Return the committed checkpoint of `step`, which another rank has verified."""
    path = folder / _name(step)
    return Checkpoint(path, step, json.loads((path / _STATE).read_text()))


def find_fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None; every byte of it is read."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        listed = {name: (entry["bytes"], entry["xxh3_128"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return f"it has no {_MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {_MANIFEST} is not valid"
    if not {_STATE, _METADATA} <= listed.keys():
        return f"its {_MANIFEST} does not list {_STATE} and {_METADATA}"
    for name, (size, digest) in listed.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes and should have {size}"
        if _digest_file(file) != digest:
            return f"{name} has other bytes than were written"
    return None


def load_tensors(
    checkpoint: Checkpoint, *, model: nn.Module, optimizer: torch.optim.Optimizer, average: Tensors, world: World
) -> None:
    """Read the weights, buffers, averages and optimizer state of a checkpoint, in place.

    Raises `CheckpointError` where the checkpoint does not hold what the model needs.
    """
    reader = _SafeReader(checkpoint.path)
    stored = reader.read_metadata().state_dict_metadata
    tensors: Tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    if missing := [name for name in tensors if name not in stored]:
        raise CheckpointError(f"checkpoint {checkpoint.path} lacks {missing[0]}")
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        for key in [key for key in stored if key.startswith(prefix)]:
            entry = stored[key]
            assert isinstance(entry, TensorStorageMetadata)
            if entry.size == parameter.shape:
                value = torch.zeros_like(parameter, dtype=entry.properties.dtype)
            else:  # a step count: fused optimizers keep it with the parameter, as it was saved
                value = torch.zeros(entry.size, dtype=entry.properties.dtype, device=parameter.device)
            tensors[key] = value
            optimizer.state[parameter][key.removeprefix(prefix)] = value
    try:
        with _one_process_is_meant():
            load_shards(tensors, storage_reader=reader, no_dist=world.size == 1)
    except (OSError, CheckpointException) as error:
        raise CheckpointError(f"checkpoint {checkpoint.path} could not be read: {error}") from error


def digest_tensors(tensors: Tensors) -> str:
    """Return the xxh3-128 digest of tensors by name: equal digests are equal bits. All ranks call it together."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _commit(draft: Path, final: Path) -> None:
    """Write the manifest, bring everything to disk, and give the folder its name in one step."""
    files = sorted(file for file in draft.iterdir() if file.is_file())
    entries = {f.name: {"bytes": f.stat().st_size, "xxh3_128": _digest_file(f)} for f in files}
    write_atomically(draft / _MANIFEST, json.dumps({"files": entries}, indent=1))
    for path in (draft / _STATE, draft / _METADATA, draft / _MANIFEST, draft):
        _sync(path)
    draft.replace(final)
    _sync(final.parent)


def _digest_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _SafeReader(FileSystemReader):
    """DCP's reader, except that its pickled metadata may only name the classes that DCP itself writes there."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - DCP's own signature
        with (Path(self.path) / _METADATA).open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{self.path}/{_METADATA} holds no metadata of a checkpoint")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles DCP's metadata and refuses every other class or function, since a pickle can name any of them."""

    ALLOWED = frozenset(
        {
            ("torch.distributed.checkpoint.metadata", "Metadata"),
            ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
            ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
            ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
            ("torch.distributed.checkpoint.metadata", "TensorProperties"),
            ("torch.distributed.checkpoint.metadata", "StorageMeta"),
            ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),  # the folder it was written to
            ("pathlib._local", "PosixPath"),  # the same in Python 3.13
        }
    )

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed class; a dtype is an attribute of torch that is one."""
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise CheckpointError(f"the metadata of a checkpoint names {module}.{name}, which could run code; refused")
