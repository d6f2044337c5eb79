"""A first pass says what does not go together, and leaves the network as it was."""

from typing import Any

import pytest
import torch
from torch import nn

from distrain.errors import ModelError
from distrain.models.zoo import build_model
from distrain.recipe import Model
from distrain.trial import check_outputs, undisturbed

IMAGES = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def test_passes_leave_modes_statistics_and_random_numbers_as_they_were() -> None:
    inner = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(4).eval())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), inner)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(5)
    with undisturbed(net):
        net.train()(IMAGES)
        assert not torch.equal(net.state_dict()["2.1.running_mean"], before["2.1.running_mean"])
    with pytest.raises(RuntimeError), undisturbed(net):
        net.eval()(IMAGES[:, :1])
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert [module.training for module in (net, net[0], inner, inner[1])] == [True, True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "alexnet",
            r"model\.name=alexnet does not take images of 3x40x40 \(Given input size.*; make them what",
        ),
        ("vit_b_32", r"model\.name=vit_b_32 does not take images of 3x40x40 \(Wrong image height"),
        ("lenet", r"model\.name=lenet takes images of 32x32 pixels, and these have 40x40"),
    ],
)
def test_size_that_a_network_does_not_take_is_one_sentence(name: str, words: str) -> None:
    net = build_model(Model(name=name, weights=None), num_classes=5, in_channels=3)
    with pytest.raises(ModelError, match=words):
        check_outputs(net, IMAGES, name=name, num_outputs=5)


class Giving(nn.Module):
    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: torch.Tensor) -> Any:
        assert not self.training
        if isinstance(self.outputs, Exception):
            raise self.outputs
        return self.outputs


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"logits": torch.zeros(2, 5)}, r"mine:net gives a dict; return a floating-point tensor \[samples, 5\]"),
        (torch.zeros(2), r"mine:net gives float32 \[2\] for 2 samples; return a floating-point tensor \[samples, 5\]"),
        (torch.zeros(2, 6), r"gives float32 \[2, 6\] for 2 samples"),
        (torch.zeros(2, 5, dtype=torch.int64), r"gives int64 \[2, 5\] for 2 samples"),
    ],
)
def test_outputs_that_fit_no_classes_are_one_sentence(outputs: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check_outputs(Giving(outputs), IMAGES, name="mine:net", num_outputs=5)


def test_fitting_outputs_pass_and_an_error_of_the_users_own_network_is_left_alone() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_outputs(Giving(torch.zeros(2, 5, dtype=dtype)), IMAGES, name="mine:net", num_outputs=5)
    with pytest.raises(KeyError, match="theirs"):
        check_outputs(Giving(KeyError("theirs")), IMAGES, name="mine:net", num_outputs=5)
