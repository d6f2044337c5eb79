"""Weights files can neither run code nor mismatch silently, and are loaded partially only on request."""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distrain.config import Model
from distrain.errors import ModelError
from distrain.models.registry import build_model
from distrain.models.weight_files import read_content


def digits_cnn(num_classes: int, weights: Path | None = None, **options: Any) -> nn.Module:
    config = Model(name="digits-cnn", weights=None if weights is None else str(weights), **options)
    return build_model(config, num_classes=num_classes, in_channels=1)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_another_head_are_loaded_below_a_new_head(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "distrain")
    donor = digits_cnn(10)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(donor.state_dict(), file)
    else:
        save_file(donor.state_dict(), file)
    same = digits_cnn(10, file).state_dict()
    assert caplog.messages == [f"model.weights={file}: loaded 20 of the model's 20 tensors"]
    other = digits_cnn(4, file).state_dict()
    words = "loaded 18 of the model's 20 tensors; initialised: fc.weight, fc.bias (10 outputs there, 4 here)"
    assert caplog.messages[-1] == f"model.weights={file}: {words}"
    for key, tensor in donor.state_dict().items():
        assert torch.equal(same[key], tensor), key
        if not key.startswith("fc."):
            assert torch.equal(other[key], tensor), key
    assert other["fc.weight"].shape == (4, 512)


class Hostile:
    """A pickle that creates a folder when it is read."""

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


@pytest.mark.parametrize("kind", ["TorchScript", "torch.export"])
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_program_is_refused_with_the_command_that_extracts_its_tensors(tmp_path: Path, kind: str) -> None:
    file, example = tmp_path / "weights.pt", torch.zeros(1, 1, 8, 8)
    if kind == "TorchScript":
        program: Any = torch.jit.trace(digits_cnn(10).eval(), example)  # type: ignore[no-untyped-call]  # torch's
        torch.jit.save(program, str(file))
    else:
        torch.export.save(torch.export.export(digits_cnn(10).eval(), (example,)), file)
    for title in (str(file), "model.weights=weights.pt"):
        with pytest.raises(ModelError) as caught:
            read_content(file, title=title)
        head, command = str(caught.value).split(": torch.save(")
        trust = "which contains code beside its tensors, and is refused; if you trust it, save the tensors only"
        assert head == f"{title} is a {kind} program, {trust}"
    tensors = eval(command.split(", 'weights.pth'")[0].replace("weights.pt", str(file)), {"torch": torch})
    torch.save(tensors, tmp_path / "weights.pth")
    assert digits_cnn(10, tmp_path / "weights.pth").state_dict().keys() == tensors.keys()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + bytes(18)])
def test_file_of_another_kind_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"is not a file that torch\.save wrote"):
        read_content(file, title=str(file))
    np.savez(tmp_path / "weights.npz", a=np.zeros(3))
    with pytest.raises(ModelError, match=r"is not a file that torch\.save wrote"):
        read_content(tmp_path / "weights.npz", title="weights.npz")


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
    elif fault == "trainer's checkpoint without weights":
        torch.save({"epoch": 3, "state_dict": {"step": 4}}, file)
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
        "trainer's checkpoint without weights",
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


@pytest.mark.parametrize("wrapping", ["net", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_in_files_of_training_scripts(tmp_path: Path, wrapping: str, prefix: str) -> None:
    file = tmp_path / "checkpoint.pt"
    donor = digits_cnn(10).state_dict()
    torch.save({"epoch": 3, "acc": 0.5, wrapping: {f"{prefix}{k}": t for k, t in donor.items()}}, file)
    loaded = digits_cnn(10, file).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in donor.items())


def test_part_of_a_file_is_loaded_on_request_and_every_mismatch_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "distrain")
    file = tmp_path / "weights.pth"
    donor = digits_cnn(10).state_dict()
    state = {key: tensor for key, tensor in donor.items() if not key.startswith("features.1.")}
    state |= {"other.weight": torch.zeros(2), "features.0.1.bias": torch.zeros(3)}
    torch.save(state, file)
    with pytest.raises(ModelError, match=r"features\.1\.0\.weight is missing; model\.partial=true loads what fits"):
        digits_cnn(10, file)
    loaded = digits_cnn(10, file, partial=True).state_dict()
    assert torch.equal(loaded["features.3.0.weight"], donor["features.3.0.weight"])
    assert not torch.equal(loaded["features.1.0.weight"], donor["features.1.0.weight"])
    lines = caplog.text
    assert "loaded 13 of the model's 20 tensors" in lines
    assert "; initialised: features.1 (6 tensors), features.0.1.bias" in lines
    assert "of another shape: features.0.1.bias is 3, expected 32" in lines
    assert "the model has no place for other" in lines


def test_newly_initialised_head_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distrain")
    torch.save(digits_cnn(10).state_dict(), tmp_path / "weights.pth")
    digits_cnn(3, tmp_path / "weights.pth")
    assert "loaded 18 of the model's 20 tensors" in caplog.text
    assert "; initialised: fc.weight, fc.bias (10 outputs there, 3 here)" in caplog.text
    assert "of another shape" not in caplog.text


def test_weights_of_another_network_are_refused_with_the_nearest_names(tmp_path: Path) -> None:
    state = {
        key.replace("features.1.0", "features.1.conv"): tensor for key, tensor in digits_cnn(10).state_dict().items()
    }
    torch.save(state, tmp_path / "weights.pth")
    words = r"features\.1\.0\.weight is missing \(the nearest there: features\.1\.conv\.weight\); model\.partial=true"
    with pytest.raises(ModelError, match=words):
        digits_cnn(10, tmp_path / "weights.pth")


def test_file_without_a_fitting_tensor_is_refused_even_partially(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(nn.Linear(2, 2).state_dict(), file)
    with pytest.raises(ModelError, match="no tensor has the name and shape of one of its weights"):
        digits_cnn(10, file, partial=True)


def test_tensors_without_a_place_in_the_model_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "weights.pth"
    torch.save({**digits_cnn(10).state_dict(), "aux.weight": torch.zeros(2)}, file)
    digits_cnn(10, file)
    assert "the model has no place for aux" in caplog.text


def test_weights_for_colour_images_are_converted_for_grey_ones(tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pth"
    donor = build_model(Model(name="resnet18"), num_classes=4, in_channels=3).eval()
    torch.save(donor.state_dict(), file)
    grey = build_model(Model(name="resnet18", weights=str(file)), num_classes=4, in_channels=1).eval()
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(image), donor(image.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


def test_misspelt_value_for_weights_is_reported_as_a_missing_file() -> None:
    with pytest.raises(ModelError, match=r"^model\.weights=imagnet: there is no such file; did you mean imagenet\?$"):
        read_content(Path("imagnet"), title="model.weights=imagnet")
    with pytest.raises(ModelError, match=r"there is no such file$"):
        read_content(Path("none.pth"), title="model.weights=none.pth")
