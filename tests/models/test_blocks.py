"""Blocks of networks of every kind, and the units that FSDP gathers."""

import pytest
from torch import nn

from distrain.config import Model
from distrain.models.blocks import divide, find_blocks
from distrain.models.registry import build_model


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("resnet18", ["BasicBlock"] * 8), ("cifar-fast", ["Group"] * 3), ("vit_b_16", ["EncoderBlock"] * 12)],
)
def test_blocks_are_the_outermost_modules_that_repeat(name: str, blocks: list[str]) -> None:
    net = build_model(Model(name=name), num_classes=10, in_channels=3)
    assert [type(block).__name__ for block in find_blocks(net)] == blocks


class Holder(nn.Module):
    """A module without a forward pass, whose network calls its children."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))


def test_module_without_a_forward_pass_is_not_a_unit() -> None:
    assert all(type(part) is nn.Linear for part in divide(nn.ModuleList([Holder(), Holder()])))


def test_weight_that_two_modules_share_is_in_no_unit() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    assert divide(network) == [network[1]]
