"""Builds the optimizers, and the learning rate as a pure function of the step."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import nn

from distrain import config as recipe
from distrain.tensors.dtensor import is_sharded

LrSchedule = Callable[[int], float]


@dataclass(frozen=True)
class ParamGroupOptions:
    """How a parameter is updated; parameters with equal settings are one group of the optimizer."""

    lr_factor: float = 1.0  # of the learning rate
    has_decay: bool = True


def build_optimizer(
    config: recipe.Optimizer, model: nn.Module, settings: Mapping[str, ParamGroupOptions] | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe over all trainable parameters, in torch's fused form where it has one.

    `settings` are those of parameters by name, where they are not the default. Parameters of equal settings and of one
    type are a group; groups, and the parameters in each, have the order in which the network has its parameters. Where
    some are in parts, their groups come first: torch's loss scaling looks at the first gradient for how they are.
    """
    groups = _groups(config, model, settings or {})
    if config.name == "sgd":
        # torch's fused SGD does not support sharded parameters
        in_parts = any(is_sharded(parameter) for group in groups for parameter in group["params"])
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum or 0.0,
            nesterov=config.nesterov or False,
            fused=not in_parts,
            foreach=in_parts,
        )
    if config.name == "rmsprop":
        return torch.optim.RMSprop(
            groups,
            lr=config.lr,
            alpha=0.99 if config.alpha is None else config.alpha,
            eps=config.eps or 1e-8,
            momentum=config.momentum or 0.0,
            foreach=True,  # torch has no fused RMSprop
        )
    if config.name != "adam" and config.name != "adamw":
        assert_never(config.name)
    rule = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return rule(groups, lr=config.lr, betas=config.betas or (0.9, 0.999), eps=config.eps or 1e-8, fused=True)


def _groups(
    config: recipe.Optimizer, model: nn.Module, settings: Mapping[str, ParamGroupOptions]
) -> list[dict[str, Any]]:
    # A fused update needs parameters of one type.
    members: dict[tuple[bool, ParamGroupOptions, torch.dtype], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = not is_sharded(parameter), settings.get(name, ParamGroupOptions()), parameter.dtype
            members.setdefault(kind, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_factor": setting.lr_factor,
            "weight_decay": _weight_decay(config, setting),
        }
        for (_, setting, _), parameters in sorted(members.items(), key=lambda item: item[0][0])
    ]


def _weight_decay(config: recipe.Optimizer, setting: ParamGroupOptions) -> float:
    """Return the penalty of a group; a step subtracts this times the group's learning rate."""
    if not setting.has_decay:
        return 0.0
    return config.weight_decay / setting.lr_factor if config.even_decay else config.weight_decay


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give each parameter group this learning rate, times the group's own factor, for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_factor"]


@torch.no_grad()
def update(optimizer: torch.optim.Optimizer) -> None:
    """Do what `optimizer.step()` does, to the bit; fused SGD skips torch's bookkeeping around it.

    That (a range for the profiler, hooks, grouping by device and type) takes longer than a small network's update.
    """
    if not isinstance(optimizer, torch.optim.SGD) or not optimizer.defaults["fused"]:
        optimizer.step()
        return
    begin_momentum(optimizer)
    for group in optimizer.param_groups:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if weights:
            torch._fused_sgd_(
                weights,
                [weight.grad for weight in weights],
                [optimizer.state[weight]["momentum_buffer"] for weight in weights] if group["momentum"] else [],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=False,
            )


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD's weights that have their first gradient the momentum 0: the update adds the gradient to it.

    torch's fused form fails where weights of a group begin in different steps, as those do that thaw, or that a
    network skips at random.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for weight in group["params"] if group["momentum"] else ():
            if weight.grad is not None and "momentum_buffer" not in optimizer.state[weight]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def build_schedule(config: recipe.Schedule, *, steps_per_epoch: int, total_steps: int) -> LrSchedule:
    """Return the factor of the base learning rate at a step, counted from 0: the same at every start and resume."""
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    factor = _factor(config, steps_per_epoch=steps_per_epoch, warmup_steps=warmup_steps, total_steps=total_steps)
    if warmup_steps == 0:
        return factor
    return lambda step: (step + 1) / (warmup_steps + 1) if step < warmup_steps else factor(step)


def _factor(config: recipe.Schedule, *, steps_per_epoch: int, warmup_steps: int, total_steps: int) -> LrSchedule:
    gamma = 0.1 if config.gamma is None else config.gamma
    if config.name == "constant":
        return lambda _: 1.0
    if config.name == "step":
        assert config.step_epochs is not None
        unit = config.step_epochs * steps_per_epoch
        return lambda step: gamma ** math.floor(step / unit)
    if config.name == "multistep":
        assert config.milestones_epochs is not None
        milestones = [m * steps_per_epoch for m in config.milestones_epochs]
        return lambda step: gamma ** bisect_right(milestones, step)
    if config.name == "cosine":
        # Loshchilov and Hutter, "SGDR", 2017, without restarts, over the steps that follow the warm-up.
        return lambda step: _cosine(step - warmup_steps, total_steps - warmup_steps, 1.0, config.final_factor or 0.0)
    if config.name == "triangle":
        top = int((0.3 if config.pct_start is None else config.pct_start) * total_steps)
        ends = config.first_factor or 0.0, config.final_factor or 0.0
        return lambda step: (
            ends[0] + (1 - ends[0]) * step / top
            if step < top
            else ends[1] + (1 - ends[1]) * (total_steps - step) / (total_steps - top)
        )
    if config.name != "onecycle":
        assert_never(config.name)
    # Smith and Topin, "Super-Convergence", 2018, in torch's two-phase form with cosine annealing.
    # Where there are too few steps to rise in, as in a run of one, the peak is the first of them.
    peak = max(0.0, (0.3 if config.pct_start is None else config.pct_start) * total_steps - 1)
    first = 1 / (config.div_factor or 25.0)
    last = first / (config.final_div_factor or 1e4)
    return lambda step: (
        _cosine(step, peak, first, 1.0) if step <= peak else _cosine(step - peak, total_steps - 1 - peak, 1.0, last)
    )


def _cosine(step: float, steps: float, start: float, end: float) -> float:
    share = min(1.0, step / steps) if steps > 0 else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
