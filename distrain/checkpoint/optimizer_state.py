"""Names the state of an optimizer as tensors, and restores it, whichever optimizer it is.

A tensor is named `optimizer.WEIGHT.KEY`. Any other value of a weight, such as a step count that is a number, is packed
under that name as `module_state.pack` does. What an optimizer changes in its parameter groups is packed in
`optimizer.groups`, with the names of the weights in each: the groups may be others on another number of processes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from distrain.tensors.module_state import Tensors, pack, unpack

Named = Iterable[tuple[str, nn.Parameter]]

_GROUPS = "groups"
_OF_RECIPE = {"params", "lr", "lr_factor", "weight_decay"}  # set by distrain in each step, or at the start


def optimizer_prefix(parameter_name: str) -> str:
    """Return the prefix of the names of a parameter's optimizer state in a checkpoint."""
    return f"optimizer.{parameter_name}."


def optimizer_tensors(named: Named, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the state of an optimizer by name; tensors share memory with it, other values are packed.

    Raises `ModelError` for a value that cannot be stored.
    """
    tensors: Tensors = {}
    names: dict[nn.Parameter, str] = {}
    for name, parameter in named:
        names[parameter] = name
        values = optimizer.state.get(parameter, {})
        prefix = optimizer_prefix(name)
        tensors |= {f"{prefix}{key}": value for key, value in values.items() if isinstance(value, torch.Tensor)}
        if others := {key: value for key, value in values.items() if not isinstance(value, torch.Tensor)}:
            tensors |= _prefixed(prefix, pack(others, owner="the optimizer"))
    groups = [
        {"weights": [names[weight] for weight in group["params"]], "values": _changed(group, optimizer.defaults)}
        for group in optimizer.param_groups
    ]
    if any(group["values"] for group in groups):
        tensors |= _prefixed("optimizer.", pack({_GROUPS: groups}, owner="the optimizer"))
    return tensors


def empty_optimizer_state(
    named: Named, optimizer: torch.optim.Optimizer, stored: Mapping[str, tuple[torch.Size, torch.dtype]]
) -> Tensors:
    """Return tensors for the optimizer state among the `stored` tensors, to be read into and then restored.

    A tensor of the shape of its weight is on the devices of the weight, sharded as it is; any other is a full one.
    """
    on_host = {
        weight
        for group in optimizer.param_groups
        if not (group.get("fused") or group.get("capturable"))
        for weight in group["params"]
    }
    tensors: Tensors = {}
    for name, parameter in named:
        prefix = optimizer_prefix(name)
        for key in [key for key in stored if key.startswith(prefix)]:
            shape, dtype = stored[key]
            if _is_packed(key, stored):
                tensors[key] = torch.empty(shape, dtype=dtype)
            elif shape == parameter.shape:
                tensors[key] = torch.zeros_like(parameter, dtype=dtype)
            else:  # torch keeps step counts on the host, except for fused and captured updates
                is_count = key == f"{prefix}step" and parameter in on_host
                device = torch.device("cpu") if is_count else parameter.device
                tensors[key] = torch.zeros(shape, dtype=dtype, device=device)
    for key, (shape, dtype) in stored.items():
        if key.startswith(f"optimizer.{_GROUPS}:"):
            tensors[key] = torch.empty(shape, dtype=dtype)
    return tensors


def restore_optimizer(named: Named, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Give an optimizer the state that `optimizer_tensors` has named, once it is read."""
    names: dict[nn.Parameter, str] = {}
    for name, parameter in named:
        names[parameter] = name
        prefix = optimizer_prefix(name)
        state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter].update(unpack(state, device=parameter.device))
    prefix = "optimizer."
    packed = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(f"{prefix}{_GROUPS}:")}
    for stored in unpack(packed).get(_GROUPS, []):
        weights = set(stored["weights"])
        for group in optimizer.param_groups:
            if any(names[weight] in weights for weight in group["params"]):
                group.update(stored["values"])


def _changed(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a parameter group that are not those which the optimizer was made with."""
    return {
        key: value
        for key, value in group.items()
        if key not in _OF_RECIPE and not (key in defaults and _are_equal(value, defaults[key]))
    }


def _are_equal(value: Any, other: Any) -> bool:
    if isinstance(value, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(value, other)
    return bool(value == other)


def _is_packed(key: str, stored: Mapping[str, object]) -> bool:
    return f"{key.rpartition(':')[0]}:json" in stored


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
