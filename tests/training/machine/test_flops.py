"""FLOPs are those of the formulas, counted on a copy without data: nothing is drawn, computed or changed."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distrain.config import Model, load_recipe
from distrain.distributed.world import World
from distrain.models.registry import build_model
from distrain.training.machine import flops
from distrain.training.machine.flops import count_flops, peak_share_of_sample


def test_linear_layers_cost_two_operations_a_weight_and_three_passes() -> None:
    """Forward, gradient of the weights, gradient of the input: the last one not of the first layer."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    assert count_flops(model, torch.zeros(4, 8)) == 2 * (8 * 16 * 2 + 16 * 2 * 3)


def test_convolution_costs_its_kernel_at_each_output() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 8 * 8, 10))
    convolution, linear = 2 * 3 * 5 * 9 * 64, 2 * 5 * 64 * 10
    assert count_flops(model, torch.zeros(2, 3, 8, 8)) == convolution * 2 + linear * 3


def test_frozen_weights_have_no_gradient_to_compute() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    model[0].requires_grad_(requires_grad=False)
    assert count_flops(model, torch.zeros(4, 8)) == 2 * (8 * 16 + 16 * 2 * 2)


class Drawing(nn.Module):
    """Draws from every generator, counts its passes, and keeps a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout, self.norm = nn.Linear(8, 4), nn.Dropout(), nn.BatchNorm1d(4)
        self.passes = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        noise = torch.rand(()).item() + np.random.rand() + random.random()
        outputs: torch.Tensor = self.norm(self.dropout(self.linear(images))) * noise
        return outputs


def test_counting_changes_neither_network_nor_generators() -> None:
    model = Drawing().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    assert count_flops(model, torch.zeros(2, 8)) == 2 * 8 * 4 * 2
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert (np.random.get_state()[1] == generators[2]).all()  # type: ignore[index]
    assert model.passes == 0
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


class Looking(nn.Linear):
    """Decides by the values of its input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) if images.sum() > 0 else images


def test_network_that_looks_at_values_is_not_counted() -> None:
    assert count_flops(Looking(8, 8), torch.zeros(2, 8)) is None


@pytest.mark.parametrize(("name", "giga"), [("resnet18", 1.82), ("mobilenet_v2", 0.30)])
def test_known_networks_cost_about_three_times_their_forward_pass(name: str, giga: float) -> None:
    """The multiply-accumulates of torchvision's documentation, for 224x224 pixels."""
    model = build_model(Model(name=name), num_classes=1000, in_channels=3)
    counted = count_flops(model, torch.zeros(2, 3, 224, 224))
    assert counted == pytest.approx(3 * 2 * giga * 1e9, rel=0.06)


@pytest.mark.parametrize(
    ("overrides", "tera"), [([], 494.5), (["compute.tf32=false"], 67), (["precision=bf16"], 989.5)]
)
def test_share_of_the_peak_is_that_of_all_gpus_and_the_precision(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], tera: float
) -> None:
    recipe = load_recipe("digits", overrides=overrides)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    model, images = nn.Linear(8, 4), torch.zeros(2, 8)

    def share(**world: Any) -> float | None:
        return peak_share_of_sample(recipe, model, images, World(0, local_rank=0, **world))

    one = 2 * 8 * 4 * 2 / (tera * 1e12)
    assert share(size=1, device=torch.device("cuda", 0)) == pytest.approx(one)
    assert share(size=8, device=torch.device("cuda", 0)) == pytest.approx(one / 8)
    assert share(size=1, device=torch.device("cuda", 0), num_devices=4) == pytest.approx(one / 4)
    assert share(size=2, device=torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA T400")
    monkeypatch.setattr(flops, "count_flops", None)  # it is not called
    assert share(size=1, device=torch.device("cuda", 0)) is None


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_divide_the_operations_of_all_three_passes(kind: type[nn.Conv2d], groups: int) -> None:
    layer = kind(4, 8, 3, padding=1, stride=1, groups=groups)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), layer)
    first, grouped = 2 * 4 * 4 * 64, 2 * 4 * 8 * 9 * 64 // groups
    assert count_flops(model, torch.zeros(2, 4, 8, 8)) == 2 * first + 3 * grouped
