"""Gradients are clipped as torch and timm clip them."""

from collections.abc import Callable

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from distrain.config import Train
from distrain.training.optim.clipping import build_clipping


def with_gradients() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 2))
    for number, weight in enumerate(net.parameters()):
        weight.grad = torch.randn_like(weight) * 10.0 ** (number % 4 - 3)
    with torch.no_grad():
        net.get_parameter("3.weight")[0] = 0.0  # a unit without a norm of its own
    net.get_parameter("1.bias").grad = None
    return net


def agc_without_the_head(net: nn.Sequential) -> None:
    adaptive_clip_grad(list(net[:-1].parameters()), clip_factor=0.02)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("options", "peer"),
    [
        ({"agc": 0.02}, agc_without_the_head),
        ({"clip_value": 0.05}, lambda net: nn.utils.clip_grad_value_(net.parameters(), 0.05)),
        ({"clip_norm": 0.3}, lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.3)),
    ],
)
def test_clipping_has_the_bits_of_its_peer(options: dict[str, float], peer: Callable[[nn.Sequential], object]) -> None:
    ours, theirs, before = with_gradients(), with_gradients(), with_gradients()
    clip = build_clipping(Train(epochs=1, **options), ours, heads=["4"])
    assert clip is not None
    norms = clip(list(ours.parameters()))
    peer(theirs)
    gradients = [
        (a.grad, b.grad, c.grad) for a, b, c in zip(*(n.parameters() for n in (ours, theirs, before)), strict=True)
    ]
    assert all(torch.equal(mine, other) for mine, other, _ in gradients if mine is not None and other is not None)
    assert sum(a is not None and c is not None and not torch.equal(a, c) for a, _, c in gradients) > 2
    assert [norm.item() for norm in norms] == pytest.approx([c.norm().item() for _, _, c in gradients if c is not None])


def test_nothing_is_clipped_unless_the_recipe_says_so() -> None:
    assert build_clipping(Train(epochs=1), with_gradients(), heads=[]) is None
