"""Builds the optimizer of a recipe, and updates the weights with it."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn

from distrain import config as recipe
from distrain.config.optim import SCHEDULE_FREE
from distrain.tensors.dtensor import is_sharded
from distrain.training.optim.foreign import build_foreign
from distrain.training.optim.muon import build_muon, join_groups
from distrain.training.optim.param_groups import ParamGroupOptions, group_parameters
from distrain.training.optim.trial import check_sharded, check_update, sample_groups


def build_optimizer(
    config: recipe.Optimizer,
    model: nn.Module,
    settings: Mapping[str, ParamGroupOptions] | None = None,
    *,
    heads: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe over all trainable parameters, in torch's fused form where it has one.

    `settings` are those of parameters by name, where they are not the default; `heads` are the paths of the network's
    heads. Parameters of equal settings and of one type are a group; groups, and the parameters in each, have the order
    in which the network has its parameters. Where some are in parts, their groups come first: torch's loss scaling
    looks at the first gradient for how they are. Raises `RecipeError` for an optimizer that cannot be used.
    """
    settings = settings or {}
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if config.name == "muon":
        muon = build_muon(config, model, settings, heads=heads)
        count = muon.num_matrix_groups
        check_sharded(
            config,
            lambda groups: join_groups(config, groups[:count], groups[count:]),
            sample_groups(muon.param_groups),
        )
        return muon
    groups = group_parameters(config, weights, settings)
    if config.is_foreign or config.name in SCHEDULE_FREE:
        samples = sample_groups(groups)
        optimizer = build_foreign(config, groups)
        check_update(config, partial(build_foreign, config), samples)
        check_sharded(config, partial(build_foreign, config), samples)
        return optimizer
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
    rule = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return rule(groups, lr=config.lr, betas=config.betas or (0.9, 0.999), eps=config.eps or 1e-8, fused=True)


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
    if not isinstance(optimizer, torch.optim.SGD) or optimizer.defaults["dampening"]:
        return
    for group in optimizer.param_groups:
        for weight in group["params"] if group["momentum"] else ():
            if weight.grad is not None and "momentum_buffer" not in optimizer.state[weight]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
