"""A network's two ends fit the data: its head by replacement or behind it, its first layer by its channels."""

import copy

import pytest
import torch
from torch import nn

from distrain.models.heads import fit_channels
from distrain.models.zoo import build_model, heads_of
from distrain.recipe import Model


def test_appended_head_follows_the_outputs_and_leaves_all_names_as_they_are() -> None:
    config = Model(name="vgg11", head="append")
    model = build_model(config, num_classes=4, in_channels=3).eval()
    plain = build_model(Model(name="vgg11"), num_classes=1000, in_channels=3).eval()
    state = model.state_dict()
    assert list(state) == [*plain.state_dict(), "appended.weight", "appended.bias"]
    assert state["appended.weight"].shape == (4, 1000)
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain(images) @ state["appended.weight"].T + state["appended.bias"]
        torch.testing.assert_close(model(images), expected)
        torch.testing.assert_close(copy.deepcopy(model)(images), expected)
    assert heads_of(config, model) == ["appended"]


def test_layer_that_is_named_is_the_one_replaced() -> None:
    config = Model(name="vgg11", head_name="classifier.3")
    model = build_model(config, num_classes=4, in_channels=3)
    layers = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    assert layers == [4096, 4, 1000]
    assert heads_of(config, model) == ["classifier.3"]


@pytest.mark.parametrize("num_channels", [1, 2, 4, 6, 7])
def test_first_layer_for_other_channels_gives_a_grey_image_the_same_activations(num_channels: int) -> None:
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    fitted = fit_channels(weight, num_channels)
    assert fitted.shape == (5, num_channels, 3, 3)
    torch.testing.assert_close(fitted.sum(dim=1), weight.sum(dim=1))


def test_torchvision_model_takes_images_of_other_channels() -> None:
    model = build_model(Model(name="resnet18"), num_classes=4, in_channels=5).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 5, 64, 64)).shape == (1, 4)
    assert model.get_submodule("conv1").stride == (2, 2)
