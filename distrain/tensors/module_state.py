"""Packs the entries of a module's `state_dict` that are not weights or buffers into tensors, and loads them again.

These entries are the module's extra state, for example the result of `get_extra_state`. A tensor is packed under its
name, any other value as the JSON text `NAME:json`, uint8, with the tensors that it refers to as `NAME:0`, `NAME:1` and
so on.
"""

from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from distrain.errors import ModelError
from distrain.tensors.dtensor import local_shard
from distrain.tensors.plain_values import STORABLE, NotPlainError, decode, encode, is_storable

MODEL, LOSS, RANKS = "model.", "loss.", "ranks."  # prefixes of the names of tensors in a checkpoint
TASK_LAYERS = "task_layers"  # the child of a network with the layers that its task trains, and only training needs
_TEXT = ":json"

Tensors = dict[str, torch.Tensor]
LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@runtime_checkable
class Stateful(Protocol):
    """A module, or any other object with a state that can be saved and loaded."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state by name."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Load such a state."""
        ...


def as_stateful(owner: object) -> Stateful | None:
    """Return `owner` if it is a module or another object with a state, else None, as for a function or class."""
    return owner if isinstance(owner, Stateful) and not isinstance(owner, type) else None


def split(module: nn.Module) -> tuple[Tensors, dict[str, Any]]:
    """Return the two parts of a module's `state_dict`: weights and buffers, sharing its memory, and extra state."""
    named = dict(chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)))
    memory = {memory_of(tensor) for tensor in named.values()} - {0}
    live: Tensors = {}
    extra: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        is_live = isinstance(value, torch.Tensor) and (name in named or memory_of(value) in memory)
        (live if is_live else extra)[name] = value
    return live, extra


def load_extra_state(
    module: nn.Module, packed: Mapping[str, torch.Tensor], *, device: torch.device | None = None
) -> None:
    """Load packed extra state into the modules that it came from; weights and buffers are not changed.

    A tensor inside a value that was on a GPU is moved to `device`; None leaves it where it is.
    """
    whole = module.state_dict()
    state = unpack(packed, device=device)
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and isinstance(now := whole.get(name), torch.Tensor):
            state[name] = value.to(now.device, copy=True)
    module.load_state_dict(with_versions(state, module), strict=False)


def with_versions(state: Mapping[str, Any], owner: Stateful) -> dict[str, Any]:
    """Return a state with the versions of the owner's modules, without which torchvision's MNASNet does not load."""
    versioned = OrderedDict(state)
    if (metadata := getattr(owner.state_dict(), "_metadata", None)) is not None:
        versioned._metadata = metadata  # type: ignore[attr-defined]
    return versioned


def pack(state: Mapping[str, Any], *, owner: str) -> Tensors:
    """Return a state as tensors by name, copied on their devices.

    Raises `ModelError`, with `owner` as the module's name, for a value that cannot be stored.
    """
    packed: Tensors = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and is_storable(value):
            packed[name] = value.detach().clone()
            continue
        try:
            text, parts = encode(value)
        except NotPlainError as error:
            raise ModelError(
                f"{owner} has {error} as {name} in its state_dict, which a checkpoint cannot store; use {STORABLE}"
            ) from None
        packed[f"{name}{_TEXT}"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        packed |= {f"{name}:{place}": part for place, part in enumerate(parts)}
    return packed


def unpack(packed: Mapping[str, torch.Tensor], *, device: torch.device | None = None) -> dict[str, Any]:
    """Return the state that `pack` has packed; other tensors are not changed.

    A tensor inside a value that was on a GPU is moved to `device`; None leaves it where it is.
    """
    parts: dict[str, Tensors] = {}  # by the name of the value
    for name, tensor in packed.items():
        owner, _, part = name.rpartition(":")
        if f"{owner}{_TEXT}" in packed:
            parts.setdefault(owner, {})[part] = tensor
    state: dict[str, Any] = {name: tensor for name, tensor in packed.items() if name.rpartition(":")[0] not in parts}
    for owner, found in parts.items():
        text = found.pop(_TEXT[1:]).cpu().numpy().tobytes().decode()
        tensors = [found[str(place)] for place in range(len(found))]
        state[owner] = decode(text, tensors, device=device)
    return state


def buffer_slots(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the module and name of each buffer, once each: a forward pass may assign another tensor there."""
    found: dict[int, tuple[nn.Module, str]] = {}
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            found.setdefault(id(buffer), (part, name))
    return list(found.values())


@contextmanager
def preserve_buffers(module: nn.Module) -> Iterator[None]:
    """Restore a module's buffers at the end: the same tensors with their old values."""
    kept = [(part, name, part.get_buffer(name)) for part, name in buffer_slots(module)]
    empty = [(part, name) for part in module.modules() for name, buffer in part._buffers.items() if buffer is None]
    values = [buffer.clone() for _, _, buffer in kept]
    try:
        yield
    finally:
        with torch.no_grad():
            for (part, name, buffer), value in zip(kept, values, strict=True):
                part._buffers[name] = buffer.copy_(value)
        for part, name in empty:
            part._buffers[name] = None


def is_packed(name: str) -> bool:
    """Whether a name is that of a packed value that is not a tensor."""
    return name.endswith(_TEXT)


def is_part_of(packed_name: str, names: Container[str]) -> bool:
    """Whether the name of a packed tensor belongs to one of these entries of a `state_dict`."""
    return packed_name in names or packed_name.rpartition(":")[0] in names


def memory_of(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's storage, which views share; 0 where it has none."""
    return local_shard(tensor).untyped_storage().data_ptr()
