"""Reads a checkpoint's tensors on any number of processes, and never runs code that the checkpoint names."""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards

from distrain.checkpoint.optimizer_state import empty_optimizer_state, restore_optimizer
from distrain.checkpoint.tensors import AVERAGE, Tensors, extra_names, model_tensors
from distrain.distributed.world import World
from distrain.errors import CheckpointError
from distrain.messages import type_and_first_line
from distrain.runs.checkpoints.integrity import read_manifest
from distrain.runs.checkpoints.paths import METADATA, Checkpoint
from distrain.tensors.module_state import LOSS, MODEL, TASK_LAYERS, is_packed

_NEVER_AVERAGED = (
    "._extra_state"  # older versions stored an average of extra state, which never changed from its first value
)


def load_tensors(
    checkpoint: Checkpoint,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    others: Tensors | None = None,
    world: World,
) -> None:
    """Read the weights, buffers and optimizer state of a verified checkpoint into model and optimizer, in place.

    `others` are further tensors to read, by their names in the checkpoint. Raises `CheckpointError` if a tensor that
    the model needs is missing, or if the checkpoint names code that reading it would run.
    """
    reader = _SafeReader(checkpoint.path)
    stored = _describe(reader)
    tensors = {**model_tensors(model), **(others or {})}
    if missing := [name for name in tensors if name not in stored]:
        raise CheckpointError(f"checkpoint {checkpoint.path} has no {missing[0]}")
    described = {name: (entry.size, entry.properties.dtype) for name, entry in stored.items()}
    state = empty_optimizer_state(model.named_parameters(), optimizer, described)
    _read_into({**tensors, **state}, reader, no_dist=world.size == 1)
    restore_optimizer(model.named_parameters(), optimizer, state)


def read_extra(path: Path, *, network: set[str], has_loss: bool, rank: int, world_size: int) -> Tensors:
    """Return a rank's extra state from a verified checkpoint, packed as `ExtraState.read` returns it, on the CPU.

    `network` holds the names of the network's entries. The state of the loss is optional: older checkpoints do not have
    it. Raises `CheckpointError` like `load_tensors`.
    """
    reader = _SafeReader(path)
    stored = _describe(reader)
    names = extra_names(stored, network=network, has_loss=has_loss, rank=rank, world_size=world_size)
    if missing := sorted(network - {name.rpartition(":")[0] for name in names} - names.keys()):
        raise CheckpointError(f"checkpoint {path} has no {missing[0]}")
    tensors = _empty({stored_name: stored[stored_name] for stored_name in names.values()})
    _read_into(tensors, reader, no_dist=True)  # other ranks may read other names
    return {name: tensors[stored_name] for name, stored_name in names.items()}


def read_loss(path: Path) -> Tensors:
    """Return the state of the loss from a verified checkpoint, packed, on the CPU; empty if it has none."""
    return read_below(path, LOSS)


def read_below(path: Path, prefix: str) -> Tensors:
    """Return the tensors of a verified checkpoint below a prefix, by the rest of their names, on the CPU."""
    reader = _SafeReader(path)
    tensors = _empty({name: entry for name, entry in _describe(reader).items() if name.startswith(prefix)})
    _read_into(tensors, reader, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def read_model(path: Path, *, use_average: bool = True, has_task_layers: bool = False) -> Tensors:
    """Return the weights and buffers of a verified checkpoint by their names in the plain model, unsharded, on the CPU.

    The extra state of modules is included, packed: `module_state.unpack` converts it for `load_state_dict`.

    Moving averages replace the weights that they average, as in evaluation, unless `use_average` is False. The layers
    that the task of the training has added are only returned where the model `has_task_layers`. Raises
    `CheckpointError` like `load_tensors`.
    """
    reader = _SafeReader(path)
    stored = {name: e for name, e in _describe(reader).items() if use_average or not name.startswith(AVERAGE)}
    averages = {name for name in stored if name.startswith(AVERAGE) and not name.endswith(_NEVER_AVERAGED)}
    averaged = {f"{MODEL}{name.removeprefix(AVERAGE)}" for name in averages}
    tensors = _empty(
        {name: e for name, e in stored.items() if name in averages or (name.startswith(MODEL) and name not in averaged)}
    )
    _read_into(tensors, reader, no_dist=True)
    found = {name.removeprefix(MODEL).removeprefix(AVERAGE): tensor for name, tensor in tensors.items()}
    return {n: tensor for n, tensor in found.items() if has_task_layers or not n.startswith(f"{TASK_LAYERS}.")}


def has_packed_state(path: Path) -> bool:
    """Whether the network of a verified checkpoint has extra state that is not a tensor."""
    return any(name.startswith(MODEL) and is_packed(name) for name in _describe(_SafeReader(path)))


def describe_tensors(path: Path) -> dict[str, tuple[list[int], str]]:
    """Return (shape, dtype) of every tensor of a checkpoint by its name, without reading the tensors."""
    described = sorted(_describe(_SafeReader(path)).items())
    return {name: (list(entry.size), str(entry.properties.dtype).removeprefix("torch.")) for name, entry in described}


def _empty(described: dict[str, TensorStorageMetadata]) -> Tensors:
    return {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in described.items()}


def _describe(reader: "_SafeReader") -> dict[str, TensorStorageMetadata]:
    stored = reader.read_metadata().state_dict_metadata
    return {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}


def _read_into(tensors: Tensors, reader: "_SafeReader", *, no_dist: bool) -> None:
    try:
        with _without_single_process_warning():
            load_shards(tensors, storage_reader=reader, no_dist=no_dist)
    except (OSError, CheckpointException) as error:
        raise CheckpointError(f"checkpoint {reader.path} could not be read: {reason_of(error)}") from error


def reason_of(error: OSError | CheckpointException) -> str:
    """Return a short reason why a save or a load failed; if several ranks failed, the clearest of their reasons."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    for failure, _ in error.failures.values():
        if isinstance(failure, OSError):
            return failure.strerror or str(failure)
    failures = [failure for failure, _ in error.failures.values()]
    if any(
        isinstance(failure, pickle.UnpicklingError) for failure in failures
    ):  # torch's message advises to disable the check
        return "a shard contains objects other than tensors, which could run code; refused"
    return type_and_first_line(failures[0])


@contextmanager
def _without_single_process_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


class _SafeReader(FileSystemReader):
    """DCP's reader, with one restriction: its pickled metadata may only name the classes that DCP itself writes.

    The shards hold one `torch.save` per tensor, which DCP reads with `weights_only=True`. DCP would unpickle only those
    entries without a check that the metadata describes as bytes, and the class for these is not allowed here.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - DCP's own signature
        file = Path(self.path) / METADATA
        try:
            with file.open("rb") as stream:
                metadata = _MetadataUnpickler(stream).load()
        except CheckpointError as error:
            raise CheckpointError(f"{file} {error}") from None
        except Exception as error:  # an invalid pickle fails in many ways
            raise CheckpointError(f"{file} cannot be read: {type(error).__name__}") from error
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise CheckpointError(f"{file} does not contain the metadata of a checkpoint")
        known = read_manifest(Path(self.path)).keys()
        if unknown := {info.relative_path for info in metadata.storage_data.values()} - known:
            raise CheckpointError(f"{file} names files that have no digest: {', '.join(sorted(unknown))}; refused")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _enum_member(enum: Any, name: Any) -> Enum:
    """Replace `getattr` for enums only: Python before 3.11.4 pickles an enum member as a call of `getattr`."""
    if isinstance(enum, type) and issubclass(enum, Enum) and isinstance(name, str) and name in enum.__members__:
        return enum[name]
    raise CheckpointError("names builtins.getattr, which could run code; refused")


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles DCP's metadata and refuses all other classes and functions, since a pickle can name any of them."""

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
        """Return an allowed class, or a dtype, which is pickled as an attribute of torch."""
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        raise CheckpointError(f"names {module}.{name}, which could run code; refused")
