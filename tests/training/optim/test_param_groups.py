"""Each weight has its factor of the learning rate and its decay, by what it is and where in the network it stands."""

from typing import Any

import pytest
import torch
from torch import nn

from distrain.config import Model, Optimizer
from distrain.errors import ModelError
from distrain.models.registry import build_model
from distrain.training.optim.optimizer import build_optimizer, set_learning_rate
from distrain.training.optim.param_groups import ParamGroupOptions, find_depths, plan_param_groups


def settings(model: nn.Module, size: int = 8, **options: Any) -> dict[str, ParamGroupOptions]:
    config = Optimizer.model_validate({"lr": 0.1, "weight_decay": 0.5, **options})
    return plan_param_groups(config, model, heads=["fc"], example=torch.zeros(2, 1, size, size))


def digits_cnn() -> nn.Module:
    return build_model(Model(name="digits-cnn"), num_classes=10, in_channels=1)


def test_without_options_all_weights_are_one_group_in_their_order() -> None:
    model = digits_cnn()
    optimizer = build_optimizer(Optimizer(lr=0.1), model, settings(model))
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize(
    ("no_decay", "found"),
    [
        (["norm"], ["features.0.1.weight", "features.0.1.bias"]),
        (["bias"], ["features.0.1.bias", "fc.bias"]),
        (["fc", "features.0.0"], ["features.0.0.weight", "fc.weight", "fc.bias"]),
    ],
)
def test_decay_is_off_for_norm_layers_biases_and_names(no_decay: list[str], found: list[str]) -> None:
    planned = settings(digits_cnn(), no_decay=no_decay)
    without = [name for name, setting in planned.items() if not setting.has_decay]
    assert [name for name in without if not name.startswith(("features.1", "features.3"))] == found


def test_factors_of_the_learning_rate_multiply_and_the_last_pattern_counts() -> None:
    planned = settings(digits_cnn(), layer_decay=0.5, lr_factors={"backbone": 0.1, "features.3": 0.4})
    factors = {name: planned[name].lr_factor for name in ("features.0.0.weight", "features.3.1.bias", "fc.bias")}
    assert factors == pytest.approx({"features.0.0.weight": 0.1 / 8, "features.3.1.bias": 0.2, "fc.bias": 1.0})


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_schedule_multiplies_the_rate_of_each_group(name: str) -> None:
    model = digits_cnn()
    config = Optimizer.model_validate({"name": name, "lr": 0.1, "weight_decay": 0.5, "lr_factors": {"head": 10}})
    planned = plan_param_groups(config, model, heads=["fc"], example=torch.zeros(1, 1, 8, 8))
    optimizer = build_optimizer(config, model, planned)
    for rate in (0.1, 0.05):
        set_learning_rate(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate, 10 * rate])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5]


class HeadFirst(nn.Module):
    """Its layers are made in another order than they are called in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(3)
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.token = nn.Parameter(torch.zeros(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = images + self.token
        for block in self.blocks:
            features = block(features)
        logits: torch.Tensor = self.fc(self.norm(features))
        return logits


def test_depth_follows_the_forward_pass_and_leaves_the_network_as_it_was() -> None:
    model = HeadFirst()
    model.blocks[0].eval()
    depths = find_depths(model, torch.zeros(1, 3))
    expected = {"token": 2, "fc.weight": 0, "fc.bias": 0, "norm.weight": 1, "norm.bias": 1}
    expected |= {f"blocks.{n}.{kind}": 2 - n for n in (0, 1) for kind in ("weight", "bias")}
    assert depths == expected
    assert [module.training for module in (model, *model.blocks)] == [True, False, True]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_blocks_of_a_resnet_are_its_stem_its_residual_blocks_and_its_head() -> None:
    model = build_model(Model(name="resnet18"), num_classes=3, in_channels=3)
    depths = find_depths(model, torch.zeros(1, 3, 32, 32))
    names = ["conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer4.0.downsample.0.weight", "layer4.1.bn2.bias"]
    assert [depths[name] for name in (*names, "fc.weight")] == [9, 9, 8, 2, 1, 0]


@pytest.mark.parametrize("option", [{"no_decay": ["fd"]}, {"lr_factors": {"fd": 2}}])
def test_pattern_that_names_nothing_is_one_sentence(option: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"optimizer\.{next(iter(option))}: 'fd' is not the name of a weight"):
        settings(digits_cnn(), **option)
