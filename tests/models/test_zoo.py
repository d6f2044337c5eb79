"""Networks come by name with a head for the data's classes, and weights files can neither run code nor misfit."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distrain.errors import ModelError
from distrain.models.heads import find_head
from distrain.models.zoo import build_model
from distrain.recipe import Model


def digits_cnn(num_classes: int, weights: Path | None = None) -> nn.Module:
    config = Model(name="digits-cnn", weights=None if weights is None else str(weights))
    return build_model(config, num_classes=num_classes, in_channels=1)


@pytest.mark.parametrize(
    ("name", "head"), [("resnet18", "fc"), ("mobilenet_v2", "classifier.1"), ("vgg11", "classifier.6")]
)
def test_head_of_a_torchvision_model_gets_the_classes_of_the_data(name: str, head: str) -> None:
    model = build_model(Model(name=name), num_classes=7, in_channels=3).eval()
    assert find_head(model, name=name)[0] == head
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(("name", "channels", "size"), [("digits-cnn", 1, 8), ("cifar-cnn", 3, 32)])
def test_networks_that_ship_give_a_logit_for_each_class(name: str, channels: int, size: int) -> None:
    model = build_model(Model(name=name), num_classes=5, in_channels=channels)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 5)


def test_same_seed_draws_the_same_weights() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(11)
        models.append(digits_cnn(10))
    pairs = zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_unknown_model_is_told_with_the_nearest_name() -> None:
    with pytest.raises(ModelError, match="did you mean resnet18"):
        build_model(Model(name="resnet-18"), num_classes=2, in_channels=3)


def test_imagenet_weights_are_refused_for_a_network_that_has_none() -> None:
    with pytest.raises(ModelError, match=r"model\.weights=imagenet is for torchvision's models"):
        build_model(Model(name="digits-cnn", weights="imagenet"), num_classes=2, in_channels=1)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_another_head_are_loaded_below_a_new_head(tmp_path: Path, suffix: str) -> None:
    donor = digits_cnn(10)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(donor.state_dict(), file)
    else:
        save_file(donor.state_dict(), file)
    same = digits_cnn(10, file).state_dict()
    other = digits_cnn(4, file).state_dict()
    for key, tensor in donor.state_dict().items():
        assert torch.equal(same[key], tensor), key
        if not key.startswith("fc."):
            assert torch.equal(other[key], tensor), key
    assert other["fc.weight"].shape == (4, 512)


class Hostile:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("as_zip", [True, False])
def test_hostile_weights_are_refused_and_do_not_run(tmp_path: Path, as_zip: bool) -> None:
    file, made = tmp_path / "weights.pth", tmp_path / "made"
    if as_zip:
        torch.save({"fc.weight": Hostile(made)}, file)
    else:
        file.write_bytes(pickle.dumps(Hostile(made), protocol=2))
    with pytest.raises(ModelError, match="could run code") as caught:
        digits_cnn(10, file)
    assert "weights_only" not in str(caught.value), "torch's advice to switch the protection off"
    assert not made.exists()


def write_bad_weights(file: Path, fault: str) -> None:
    if fault == "empty":
        file.write_bytes(b"")
    elif fault == "garbage":
        file.write_bytes(b"these are no weights")
    elif fault == "one tensor":
        torch.save(torch.zeros(3), file)
    elif fault == "list":
        torch.save([torch.zeros(3)], file)
    elif fault == "whole module":
        torch.save(digits_cnn(10), file)
    elif fault == "trainer's checkpoint":
        torch.save({"epoch": 3, "state_dict": digits_cnn(10).state_dict()}, file)
    elif fault == "numbers":
        torch.save(dict.fromkeys(digits_cnn(10).state_dict(), 1), file)
    elif fault == "other network":
        torch.save(nn.Linear(2, 2).state_dict(), file)


@pytest.mark.parametrize(
    "fault",
    [
        "missing",
        "empty",
        "garbage",
        "one tensor",
        "list",
        "whole module",
        "trainer's checkpoint",
        "numbers",
        "other network",
    ],
)
def test_weights_that_do_not_fit_are_one_sentence_with_the_file(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "weights.pth"
    write_bad_weights(file, fault)
    with pytest.raises(ModelError) as caught:
        digits_cnn(10, file)
    text = str(caught.value)
    assert text.startswith(f"model.weights={file}")
    assert "\n" not in text
    assert "\x1b" not in text
    assert ". " not in text, "more than one sentence"


@pytest.mark.parametrize("content", [b"", b"these are no weights"])
def test_bad_safetensors_are_one_sentence_with_the_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        digits_cnn(10, file)
    assert str(caught.value).startswith(f"model.weights={file}")
    assert "\n" not in str(caught.value)
