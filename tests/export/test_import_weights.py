"""Old files of weights are read in any form, and those that could run code are refused without running it."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distrain.errors import ModelError
from distrain.export.import_weights import read_weights_to_import
from distrain.models.nets import DigitsCnn


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "old.pth")
    return folder / "old.pth"


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return DigitsCnn(10, 1).state_dict()


@pytest.mark.parametrize("entry", [None, "net", "model", "state_dict", "backbone"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_weights_are_found_under_any_key_and_prefix(tmp_path: Path, entry: str | None, prefix: str) -> None:
    named = {f"{prefix}{name}": tensor for name, tensor in weights().items()}
    foreign = read_weights_to_import(saved(named if entry is None else {entry: named, "epoch": 3}, tmp_path))
    assert foreign.tensors.keys() == weights().keys()
    assert all(torch.equal(foreign.tensors[name], tensor) for name, tensor in weights().items())
    assert (foreign.entry, foreign.prefix) == (entry, prefix)


def test_other_entries_beside_the_weights_are_reported(tmp_path: Path) -> None:
    model = DigitsCnn(10, 1)
    content = {
        "net": weights(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1).state_dict(),
        "epoch": 19,
        "acc": np.float64(93.5),
        "best": torch.tensor(0.25),
        "args": argparse.Namespace(lr=0.1),
    }
    foreign = read_weights_to_import(saved(content, tmp_path))
    assert foreign.facts == {"epoch": 19, "acc": 93.5, "best": 0.25}
    assert foreign.left == {"optimizer": "dict of 2", "args": "Namespace"}


def test_error_for_a_whole_model_says_how_to_save_it(tmp_path: Path) -> None:
    for content in (DigitsCnn(10, 1), nn.DataParallel(DigitsCnn(10, 1)), {"net": DigitsCnn(10, 1), "epoch": 1}):
        with pytest.raises(ModelError, match=r"DigitsCnn.*torch.save\(model.state_dict\(\)") as raised:
            read_weights_to_import(saved(content, tmp_path))
        assert "\n" not in str(raised.value)


class Evil:
    """A pickle that creates a file when it is loaded without protection."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="refused"):
        read_weights_to_import(saved({"net": weights(), "x": Evil(tmp_path / "ran")}, tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [([1, 2], "but list of 2"), ({"epoch": 3}, r"but epoch \(int\)"), ({}, "no tensors by name")],
)
def test_error_for_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_weights_to_import(saved(content, tmp_path))


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_file_of_another_kind_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("no weights at all")
    with pytest.raises(ModelError, match=name) as raised:
        read_weights_to_import(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_match_names_each_key_that_does_not_fit(tmp_path: Path) -> None:
    tensors = weights()
    good = read_weights_to_import(saved(tensors, tmp_path), model_name="digits-cnn").fit
    assert good is not None
    assert (good.is_good, good.num_classes, good.missing, good.unexpected, good.misshaped) == (True, 10, [], [], [])
    other_head = read_weights_to_import(saved(tensors, tmp_path), model_name="digits-cnn", num_classes=4).fit
    assert other_head is not None
    assert (other_head.is_good, other_head.initialised) == (True, "fc (2 tensors)")
    assert ("fc.bias", [10], [4]) in other_head.misshaped

    tensors["extra"] = tensors.pop("features.0.1.bias")
    tensors["features.0.1.weight"] = torch.zeros(7)
    bad = read_weights_to_import(saved(tensors, tmp_path), model_name="digits-cnn").fit
    assert bad is not None
    assert bad.fault == "features.0.1.bias is missing"
    assert (bad.missing, bad.unexpected) == (["features.0.1.bias"], ["extra"])
    assert bad.misshaped == [("features.0.1.weight", [7], [32])]
