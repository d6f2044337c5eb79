"""Networks are built by name, with an output for each class, a layer for the channels, and their arguments."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distrain.config import Model
from distrain.errors import ModelError
from distrain.models.registry import build_model, head_paths


def build(name: str, num_classes: int = 7, in_channels: int = 3, **options: Any) -> nn.Module:
    return build_model(Model(name=name, **options), num_classes=num_classes, in_channels=in_channels)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v2", "classifier.1"),
        ("vgg11", "classifier.6"),
        ("squeezenet1_1", "classifier.1"),
    ],
)
def test_head_of_a_torchvision_model_has_the_classes_of_the_data(name: str, head: str) -> None:
    model = build(name).eval()
    assert head_paths(Model(name=name), model) == [head]
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "channels", "size", "num_parameters"),
    [
        ("digits-cnn", 1, 8, None),
        ("cifar-cnn", 3, 32, None),
        ("lenet", 3, 32, 62_006),  # as the tutorial's for ten classes
        ("cifar-plain", 3, 32, 145_578),
        ("cifar-simple-v3", 3, 32, None),
        ("cifar-simple-v3", 1, 32, None),
        ("alexnet-5", 3, 224, 14_601_930),
    ],
)
def test_built_in_networks_give_a_logit_for_each_class(
    name: str, channels: int, size: int, num_parameters: int | None
) -> None:
    model = build(name, num_classes=10, in_channels=channels).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, channels, size, size)).shape == (2, 10)
    if num_parameters is not None:
        assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_images_of_a_wrong_size_are_one_sentence_with_the_transform_that_fixes_it() -> None:
    with pytest.raises(ModelError, match=r"lenet needs images of 32x32 pixels, but these have 28x30; add .Resize"):
        build("lenet")(torch.zeros(1, 3, 28, 30))


def test_same_seed_draws_the_same_weights() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(11)
        models.append(build("digits-cnn", 10, 1))
    pairs = zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_arguments_are_passed_to_the_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\ndef mlp(num_classes, *, width=8):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, num_classes))\n"
        "def lazy(num_classes):\n"
        "    return nn.LazyLinear(num_classes)\n"
        "def nothing(num_classes):\n"
        "    nn.Linear(1, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = build("own_nets:mlp", arguments={"width": 5})
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(5, 12), (5,), (7, 5), (7,)]
    with pytest.raises(ModelError, match=r"own_nets:mlp with .* got an unexpected keyword argument 'wide'"):
        build("own_nets:mlp", arguments={"wide": 5})
    with pytest.raises(ModelError, match=r"own_nets:lazy has lazy layers, .* or run that pass in lazy"):
        build("own_nets:lazy")
    with pytest.raises(ModelError, match=r"own_nets:nothing returns None; return a torch\.nn\.Module"):
        build("own_nets:nothing")
    sys.modules.pop("own_nets")
    dropouts = [m.p for m in build("cifar-cnn", arguments={"dropout": 0.6}).modules() if isinstance(m, nn.Dropout)]
    assert dropouts == [0.6]
    depths = [
        m.p for m in build("convnext_tiny", arguments={"stochastic_depth_prob": 0.0}).modules() if hasattr(m, "p")
    ]
    assert set(depths) == {0.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet-18"}, "model.name=resnet-18: unknown model; did you mean resnet18?"),
        (
            {"name": "digits-cnn", "weights": "imagenet"},
            "model.weights=imagenet is for torchvision's and timm's models",
        ),
        ({"name": "resnet18", "arguments": {"depth": 4}}, "unexpected keyword argument 'depth'"),
        ({"name": "vgg11", "arguments": {"dropout": 3.0}}, "dropout probability has to be between 0 and 1"),
        ({"name": "lenet", "arguments": {"dropout": 0.1}}, "got an unexpected keyword argument 'dropout'"),
        ({"name": "vgg11", "head_name": "classifier.7"}, "did you mean classifier.6"),
        (
            {"name": "resnet18", "head_name": "avgpool"},
            "model.head_name=avgpool is not a linear or convolutional layer",
        ),
    ],
)
def test_network_that_cannot_be_built_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_timm_models_get_classes_channels_and_arguments() -> None:
    pytest.importorskip("timm")
    model = build("timm.resnet10t", in_channels=1, arguments={"drop_path_rate": 0.1}).eval()
    assert head_paths(Model(name="timm.resnet10t"), model) == ["fc"]
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 7)
    with pytest.raises(ModelError, match="timm has no model 'resnet10tt'; did you mean resnet10t"):
        build("timm.resnet10tt")
    with pytest.raises(ModelError, match=r"cannot be built: .*unexpected keyword argument 'droput'"):
        build("timm.resnet10t", arguments={"droput": 0.1})


def test_missing_timm_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"needs timm, which is not installed; pip install 'distrain\[timm\]'"):
        build("timm.resnet10t")
