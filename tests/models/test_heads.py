"""Both ends of a network fit the data: the head is replaced or appended, the first layer adapted to the channels."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from distrain.config import Model
from distrain.config.parameter_patterns import select
from distrain.models.heads import fit_channels
from distrain.models.registry import build_model, head_paths


def test_appended_head_follows_the_outputs_and_keeps_all_names() -> None:
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
    assert head_paths(config, model) == ["appended"]


def test_named_layer_is_replaced() -> None:
    config = Model(name="vgg11", head_name="classifier.3")
    model = build_model(config, num_classes=4, in_channels=3)
    layers = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    assert layers == [4096, 4, 1000]
    assert head_paths(config, model) == ["classifier.3"]


@pytest.mark.parametrize("num_channels", [1, 2, 4, 6, 7])
def test_first_layer_for_other_channels_gives_a_grey_image_the_same_activations(num_channels: int) -> None:
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    fitted = fit_channels(weight, num_channels)
    assert fitted.shape == (5, num_channels, 3, 3)
    torch.testing.assert_close(fitted.sum(dim=1), weight.sum(dim=1))


def test_torchvision_model_accepts_other_numbers_of_channels() -> None:
    model = build_model(Model(name="resnet18"), num_classes=4, in_channels=5).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 5, 64, 64)).shape == (1, 4)
    assert model.get_submodule("conv1").stride == (2, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "heads"),
    [
        ("googlenet", {"aux_logits": True, "init_weights": False}, ["fc", "aux1.fc2", "aux2.fc2"]),
        ("inception_v3", {"aux_logits": True, "init_weights": False}, ["fc", "AuxLogits.fc"]),
        ("timm.deit_tiny_distilled_patch16_224", {}, ["head", "head_dist"]),
        ("timm.levit_384_s8", {}, ["head.linear", "head_dist"]),  # its configuration names the first one only
        ("timm.repvit_m1", {}, ["head.head.l", "head.head_dist.l"]),
        ("timm.swiftformer_xs", {}, ["head", "head_dist"]),
        ("timm.volo_d1_224", {}, ["head", "aux_head"]),
    ],
)
def test_all_heads_have_the_classes_of_the_data_and_are_frozen_apart(
    name: str, arguments: dict[str, Any], heads: list[str]
) -> None:
    if name.startswith("timm."):
        pytest.importorskip("timm")
    config = Model(name=name, arguments=arguments)
    with torch.device("meta"):
        three, four = (build_model(config, num_classes=count, in_channels=3) for count in (3, 4))
    assert head_paths(config, three) == heads
    shapes = {key: tensor.shape for key, tensor in four.state_dict().items()}
    changed = [key for key, tensor in three.state_dict().items() if tensor.shape != shapes[key]]
    assert {head for head in heads for key in changed if key.startswith(f"{head}.")} == set(heads)
    names = [key for key, _ in three.named_parameters()]
    assert not set(changed) & set(select("backbone", names, heads=heads, key="model.freeze"))
