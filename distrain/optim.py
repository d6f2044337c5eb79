"""Owns the optimizers, and the learning rate as a pure function of the step."""

import math
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import nn

from distrain import recipe
from distrain.sharding import is_sharded

Factor = Callable[[int], float]


def build_optimizer(config: recipe.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe over all trainable parameters, in torch's fused form where it has one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decay = config.weight_decay
    if config.name == "sgd":
        in_parts = any(is_sharded(parameter) for parameter in parameters)  # torch's fused SGD does not know these
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum or 0.0,
            nesterov=config.nesterov or False,
            weight_decay=decay,
            fused=not in_parts,
            foreach=in_parts,
        )
    if config.name == "rmsprop":
        return torch.optim.RMSprop(
            parameters,
            lr=config.lr,
            alpha=0.99 if config.alpha is None else config.alpha,
            eps=config.eps or 1e-8,
            momentum=config.momentum or 0.0,
            weight_decay=decay,
            foreach=True,  # torch has no fused RMSprop
        )
    rule = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return rule(
        parameters,
        lr=config.lr,
        betas=config.betas or (0.9, 0.999),
        eps=config.eps or 1e-8,
        weight_decay=decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give all parameter groups this learning rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def build_schedule(config: recipe.Schedule, *, steps_per_epoch: int, total_steps: int) -> Factor:
    """Return the factor of the base learning rate at a step, counted from 0: the same at every start and resume."""
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    factor = _factor(config, steps_per_epoch=steps_per_epoch, warmup_steps=warmup_steps, total_steps=total_steps)
    if warmup_steps == 0:
        return factor
    return lambda step: (step + 1) / (warmup_steps + 1) if step < warmup_steps else factor(step)


def _factor(config: recipe.Schedule, *, steps_per_epoch: int, warmup_steps: int, total_steps: int) -> Factor:
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
    # Smith and Topin, "Super-Convergence", 2018, in torch's two-phase form with cosine annealing.
    peak = (0.3 if config.pct_start is None else config.pct_start) * total_steps - 1
    first = 1 / (config.div_factor or 25.0)
    last = first / (config.final_div_factor or 1e4)
    return lambda step: (
        _cosine(step, peak, first, 1.0) if step <= peak else _cosine(step - peak, total_steps - 1 - peak, 1.0, last)
    )


def _cosine(step: float, steps: float, start: float, end: float) -> float:
    share = min(1.0, step / steps) if steps > 0 else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
