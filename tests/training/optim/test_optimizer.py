"""Optimizers have the recipe's settings, and the bits of torch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from distrain.config import Optimizer
from distrain.training.optim.optimizer import build_optimizer, set_learning_rate, update
from distrain.training.optim.param_groups import ParamGroupOptions


def test_even_decay_takes_as_much_off_every_weight_whatever_its_learning_rate() -> None:
    net = torch.nn.Linear(2, 2)
    config = Optimizer(lr=0.5, weight_decay=0.01, lr_factors={"bias": 64}, even_decay=True)
    optimizer = build_optimizer(config, net, {"bias": ParamGroupOptions(lr_factor=64)})
    set_learning_rate(optimizer, 0.5)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.5 * 0.01))


@pytest.mark.parametrize(
    ("config", "rule", "settings"),
    [
        (
            {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
            torch.optim.SGD,
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        ),
        ({"name": "sgd"}, torch.optim.SGD, {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
        (
            {"name": "adam", "betas": [0.8, 0.9], "eps": 1e-4, "weight_decay": 0.1},
            torch.optim.Adam,
            {"betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1},
        ),
        ({"name": "adamw"}, torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
        (
            {"name": "rmsprop", "alpha": 0.0, "momentum": 0.5, "eps": 1e-3},
            torch.optim.RMSprop,
            {"alpha": 0.0, "momentum": 0.5, "eps": 1e-3, "weight_decay": 0.0},
        ),
        ({"name": "rmsprop"}, torch.optim.RMSprop, {"alpha": 0.99, "momentum": 0.0, "eps": 1e-8}),
    ],
)
def test_optimizer_has_the_settings_of_the_recipe(
    config: dict[str, Any], rule: type[torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    model[0].requires_grad_(requires_grad=False)
    optimizer = build_optimizer(Optimizer.model_validate({"lr": 0.25, **config}), model)
    assert type(optimizer) is rule
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in settings} == settings
    assert group["lr"] == 0.25
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
    set_learning_rate(optimizer, 0.125)
    assert group["lr"] == 0.125


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_update_has_the_bits_of_torchs_own_step(momentum: float, nesterov: bool) -> None:
    config = Optimizer(lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.01)

    def train(
        build: Callable[[torch.nn.Module], torch.optim.Optimizer], step: Callable[[torch.optim.Optimizer], object]
    ) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
        optimizer = build(model)
        for number in range(6):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (number + 1)
            optimizer.zero_grad()
            model(torch.ones(4, 3) * number).square().mean().backward()
            if number < 3:
                model[0].zero_grad()  # it begins later than the other one of its group
            step(optimizer)
        return list(model.parameters())

    def build_theirs(model: torch.nn.Module) -> torch.optim.Optimizer:
        layers = [
            {"params": list(layer.parameters())} for layer in model.children()
        ]  # torch wants each to begin as one
        return torch.optim.SGD(layers, momentum=momentum, nesterov=nesterov, weight_decay=0.01, fused=True)

    theirs = train(build_theirs, lambda optimizer: optimizer.step())
    ours = train(lambda model: build_optimizer(config, model), update)
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
