"""Decides for each weight its factor of the learning rate and whether it decays, and groups weights by these."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from distrain import config as recipe
from distrain.config.parameter_patterns import prefixes, select
from distrain.tensors.dtensor import is_sharded
from distrain.tensors.preserve_state import preserve_state

_CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class ParamGroupOptions:
    """How a parameter is updated; parameters with equal settings are one group of the optimizer."""

    lr_factor: float = 1.0  # of the learning rate
    has_decay: bool = True


def plan_param_groups(
    config: recipe.Optimizer,
    model: nn.Module,
    *,
    heads: Sequence[str],
    example: torch.Tensor,
) -> dict[str, ParamGroupOptions]:
    """Return the setting of every parameter by its name.

    `example` is a small batch as the network gets it, `heads` the names of the heads. Raises `ModelError` for a pattern
    that names nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    without_decay = _without_decay(config.no_decay, model, names, heads=heads)
    factors = dict.fromkeys(names, 1.0)
    for pattern, factor in config.lr_factors.items():
        factors |= dict.fromkeys(select(pattern, names, heads=heads, key="optimizer.lr_factors"), factor)
    depths = dict.fromkeys(names, 0) if config.layer_decay is None else find_depths(model, example)
    return {
        name: ParamGroupOptions(
            lr_factor=factors[name] * (config.layer_decay or 1.0) ** depths[name],
            has_decay=name not in without_decay,
        )
        for name in names
    }


def group_parameters(
    config: recipe.Optimizer,
    parameters: Iterable[tuple[str, nn.Parameter]],
    settings: Mapping[str, ParamGroupOptions],
    *,
    lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Return named parameters in groups, as `build_optimizer` describes them; `lr_factor` is that of all of them."""
    # A fused update needs parameters of one type.
    members: dict[tuple[bool, ParamGroupOptions, torch.dtype], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        kind = not is_sharded(parameter), settings.get(name, ParamGroupOptions()), parameter.dtype
        members.setdefault(kind, []).append(parameter)
    return [
        {
            "params": weights,
            "lr_factor": lr_factor * setting.lr_factor,
            "weight_decay": _weight_decay(config, setting),
        }
        for (_, setting, _), weights in sorted(members.items(), key=lambda item: item[0][0])
    ]


def _weight_decay(config: recipe.Optimizer, setting: ParamGroupOptions) -> float:
    """Return the penalty of a group; a step subtracts this times the group's learning rate."""
    if not setting.has_decay:
        return 0.0
    return config.weight_decay / setting.lr_factor if config.even_decay else config.weight_decay


def _without_decay(patterns: Sequence[str], model: nn.Module, names: list[str], *, heads: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        if pattern == "norm":
            norms = {path for path, module in model.named_modules() if _is_norm(module)}
            found |= {name for name in names if name.rpartition(".")[0] in norms}
        elif pattern == "bias":
            found |= {name for name in names if name.endswith("bias")}  # in_proj_bias too
        else:
            found |= set(select(pattern, names, heads=heads, key="optimizer.no_decay"))
    return found


def find_depths(model: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """Return the number of blocks after each parameter's own: 0 for the last block, the head, and most for the first.

    A block is a child of the network, except that sequences are taken apart into their entries, as are children that
    hold a sequence. A norm layer that is an entry by itself belongs to the block before it. The order is that in which
    a forward pass of `example` first comes to the blocks; weights in no block belong to the first one.

    The learning rate by depth is that of Clark et al., "ELECTRA", 2020, and Bao et al., "BEiT", 2022.
    """
    paths = [path for path, _ in _blocks(model)]
    places: dict[str, int] = {}  # a block's position in the order of calls
    last = -1
    for path in _order_of_calls(model, paths, example):
        if not _is_norm(model.get_submodule(path)) or last < 0:
            last += 1
        places[path] = last
    owners = {
        name: next((places[prefix] for prefix in prefixes(name) if prefix in places), 0)
        for name, _ in model.named_parameters()
    }
    return {name: max(last, 0) - place for name, place in owners.items()}


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        is_outer = not prefix and any(type(inner) in _CONTAINERS for inner in child.children())
        if type(child) in _CONTAINERS or is_outer:
            yield from _blocks(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _order_of_calls(model: nn.Module, paths: list[str], example: torch.Tensor) -> list[str]:
    order: dict[str, None] = {}

    def note(path: str, *_: object) -> None:
        order[path] = None

    handles = [model.get_submodule(path).register_forward_pre_hook(partial(note, path)) for path in paths]
    with preserve_state(model), torch.no_grad():
        model.eval()(example)
    for handle in handles:
        handle.remove()
    return list(order)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm layer, of whatever library, and not a block that has one."""
    return "Norm" in type(module).__name__ and any(True for _ in module.parameters(recurse=False))
