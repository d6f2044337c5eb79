"""Tests of what is known about the user's own network and loss before the first step."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrize

from distrain.config import Recipe, load_recipe
from distrain.training.own_code import may_draw_anywhere


class Noisy(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


class NoisyLinear(nn.Linear):
    pass


def with_method() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.forward = lambda images: images  # type: ignore[method-assign, assignment]
    return layer


def with_hook() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


def with_parametrization() -> nn.Module:
    layer = NoisyLinear(2, 2)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


def own(**overrides: str) -> Recipe:
    keys = {"model.name": "package.module:name", **overrides}
    return load_recipe("digits", overrides=[f"{key}={value}" for key, value in keys.items()])


TORCHS_OWN = {
    "sequential": nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Dropout()),
    "torchvision": torchvision.models.resnet18(),
    "transformer": nn.TransformerEncoderLayer(8, 2, activation=nn.functional.gelu),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
}
USERS = {
    "module": Noisy(),
    "subclass": NoisyLinear(2, 2),
    "method": with_method(),
    "hook": with_hook(),
    "parametrized": with_parametrization(),
    "activation": nn.TransformerEncoderLayer(8, 2, activation=lambda images: images),
    "graph": torch.fx.symbolic_trace(nn.Linear(2, 2)),
}


@pytest.mark.parametrize("name", TORCHS_OWN)
def test_network_of_torchs_modules_draws_from_torch_alone(name: str) -> None:
    assert not may_draw_anywhere(own(), TORCHS_OWN[name])


@pytest.mark.parametrize("name", USERS)
def test_network_that_runs_other_code_may_draw_anywhere(name: str) -> None:
    assert may_draw_anywhere(own(), nn.Sequential(nn.Linear(2, 2), USERS[name]))


def test_own_loss_may_draw_anywhere() -> None:
    network = TORCHS_OWN["sequential"]
    assert may_draw_anywhere(own(**{"loss.name": "package.module:loss", "loss.label_smoothing": "null"}), network)
    assert not may_draw_anywhere(load_recipe("digits", overrides=[]), Noisy())  # not the user's: a network of distrain
