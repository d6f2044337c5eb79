"""Weights are found however a trainer wrapped them, and load after `distrain import`, too."""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from distrain.config import Model
from distrain.errors import ModelError
from distrain.export.import_weights import read_weights_to_import
from distrain.export.write_bundle import save_tensors
from distrain.models.nets import DigitsCnn
from distrain.models.registry import build_model

Weights = dict[str, torch.Tensor]


def trained() -> DigitsCnn:
    torch.manual_seed(3)
    return DigitsCnn(10, 1)


def average() -> AveragedModel:
    """A moving average of the trained weights, which differs from them."""
    model = trained()
    averaged = AveragedModel(model, use_buffers=True)
    for weight in model.parameters():
        weight.data += 1
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    return averaged


def load(file: Path, name: str = "digits-cnn", **options: Any) -> nn.Module:
    torch.manual_seed(4)
    return build_model(Model(name=name, weights=str(file), **options), num_classes=10, in_channels=1)


def assert_loaded(model: nn.Module, expected: Weights) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def before(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


class Wrapper(nn.Module):
    """A module as in Lightning: the network is one of several members."""

    def __init__(self) -> None:
        super().__init__()
        self.model = trained()
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(10))
        self.register_buffer("seen", torch.tensor(5))


def of_torchvision() -> dict[str, Any]:
    """The content of a file saved by the reference scripts of torchvision."""
    model = trained()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5]).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(data_path=Path("images"), lr=0.1),
        "model_ema": average().state_dict(),
        "scaler": {"scale": 65536.0},
    }


def of_timm() -> dict[str, Any]:
    return {
        "epoch": 3,
        "arch": "digits_cnn",
        "state_dict": trained().state_dict(),
        "optimizer": {},
        "version": 2,
        "args": argparse.Namespace(model="digits_cnn"),
        "state_dict_ema": average().module.state_dict(),
        "metric": 71.3,
    }


SAVED: dict[str, Callable[[], Any]] = {
    "compile of DDP": lambda: before("_orig_mod.module.", trained().state_dict()),
    "DDP of compile": lambda: before("module._orig_mod.", trained().state_dict()),
    "DDP of DDP": lambda: before("module.module.", trained().state_dict()),
    "compiled blocks": lambda: {n.replace("s.1.", "s.1._orig_mod."): t for n, t in trained().state_dict().items()},
    "FSDP": lambda: before("_fsdp_wrapped_module.", trained().state_dict()),
    "SWA": lambda: AveragedModel(trained()).state_dict(),
    "SWA of DDP": lambda: {"model": before("module.", AveragedModel(trained()).state_dict())},
    "Lightning": lambda: {"state_dict": Wrapper().state_dict(), "epoch": 3, "pytorch-lightning_version": "2.5.0"},
    "Lightning of compile": lambda: {"state_dict": before("net._orig_mod.", trained().state_dict())},
    "Hugging Face's wrapper": lambda: before("timm_model.", trained().state_dict()),
    "a deeper entry": lambda: {"checkpoint": {"student": before("backbone.", trained().state_dict())}, "epoch": 3},
    "torchvision": of_torchvision,
    "timm": of_timm,
    "no counters": lambda: {n: t for n, t in trained().state_dict().items() if not n.endswith("num_batches_tracked")},
    "model and best": lambda: {"model": trained().state_dict(), "best_model": average().module.state_dict()},
}  # fmt: skip


@pytest.mark.parametrize("way", SAVED)
def test_weights_load_as_every_trainer_saves_them(tmp_path: Path, way: str) -> None:
    torch.save(SAVED[way](), tmp_path / "saved.pth")
    assert_loaded(load(tmp_path / "saved.pth"), trained().state_dict())


@pytest.mark.parametrize("model_name", [None, "digits-cnn"])
@pytest.mark.parametrize("way", SAVED)
def test_weights_written_by_import_always_load(tmp_path: Path, way: str, model_name: str | None) -> None:
    torch.save(SAVED[way](), tmp_path / "saved.pth")
    save_tensors(
        read_weights_to_import(tmp_path / "saved.pth", model_name=model_name).tensors, tmp_path / "w.safetensors", {}
    )
    assert_loaded(load(tmp_path / "w.safetensors"), trained().state_dict())


@pytest.mark.parametrize(("content", "entry"), [(of_torchvision, "model_ema"), (of_timm, "state_dict_ema")])
def test_moving_averages_are_named_and_load_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: Callable[[], Any], entry: str
) -> None:
    caplog.set_level(logging.INFO, "distrain")
    torch.save(content(), tmp_path / "saved.pth")
    load(tmp_path / "saved.pth")
    assert f"other weights in it, not loaded: {entry}; model.weights_entry={entry} loads those" in caplog.text
    caplog.clear()
    assert_loaded(load(tmp_path / "saved.pth", weights_entry=entry), average().module.state_dict())
    assert f"tensors from {entry!r}, a moving average" in caplog.text
    imported = read_weights_to_import(tmp_path / "saved.pth", wanted=entry)
    assert (imported.entry, imported.is_average) == (entry, True)
    other = next(name for name in imported.left if name in {"model", "state_dict"})
    assert imported.left[other] == f"20 tensors; --entry {other} takes them"
    with pytest.raises(ModelError, match=rf"no weights 'ema' for this model \(model.weights_entry\).*{entry}"):
        load(tmp_path / "saved.pth", weights_entry="ema")


def test_moving_average_beside_the_network_in_one_entry_is_not_confused_with_it(tmp_path: Path) -> None:
    both = before("ema_model.module.", average().module.state_dict()) | before("model.", trained().state_dict())
    torch.save({"state_dict": both}, tmp_path / "saved.pth")
    assert_loaded(load(tmp_path / "saved.pth"), trained().state_dict())
    other = load(tmp_path / "saved.pth", weights_entry="state_dict.ema_model")
    assert_loaded(other, average().module.state_dict())


def test_averages_alone_are_loaded_and_reported_as_averages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distrain")
    torch.save(average().state_dict(), tmp_path / "saved.pth")
    assert_loaded(load(tmp_path / "saved.pth"), average().module.state_dict())
    assert "loaded 20 of the model's 20 tensors, a moving average, without 'module.' before their names" in caplog.text


def test_two_sets_that_fit_equally_well_are_an_error(tmp_path: Path) -> None:
    torch.save({"student": trained().state_dict(), "teacher": average().module.state_dict()}, tmp_path / "saved.pth")
    with pytest.raises(ModelError, match=r"several sets .*student, teacher.*choose one with model.weights_entry=NAME"):
        load(tmp_path / "saved.pth")
    with pytest.raises(ModelError, match=r"several sets .*student, teacher.*choose one with --entry=NAME"):
        read_weights_to_import(tmp_path / "saved.pth")
    assert_loaded(load(tmp_path / "saved.pth", weights_entry="teacher"), average().module.state_dict())


def test_network_inside_a_user_network_loads_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_wrapping.py").write_text(
        "from torch import nn\nfrom distrain.models.nets import DigitsCnn\n"
        "class Own(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.net = DigitsCnn(num_classes, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(before("module.", trained().state_dict()), tmp_path / "saved.pth")
    model = load(tmp_path / "saved.pth", name="own_wrapping:Own")
    assert_loaded(model, before("net.", trained().state_dict()))


def test_module_named_like_a_wrapper_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module.py").write_text(
        "from torch import nn\n"
        "class Own(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.module = nn.Linear(3, 4)\n"
        "        self.a = nn.ModuleDict({'module': nn.Linear(4, 4), 'b': nn.Linear(4, num_classes)})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = build_model(Model(name="own_module:Own"), num_classes=10, in_channels=1).state_dict()
    for prefix in ("", "module.", "_orig_mod."):
        torch.save(before(prefix, own), tmp_path / "saved.pth")
        assert_loaded(load(tmp_path / "saved.pth", name="own_module:Own"), own)


def test_weights_that_share_their_memory_may_be_in_the_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_tied.py").write_text(
        "from torch import nn\n"
        "class Own(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)\n"
        "        self.second.weight = self.first.weight\n"
        "        self.fc = nn.Linear(4, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = build_model(Model(name="own_tied:Own"), num_classes=10, in_channels=1).state_dict()
    save_file({n: t for n, t in own.items() if n != "second.weight"}, tmp_path / "saved.safetensors")  # as save_model
    assert_loaded(load(tmp_path / "saved.safetensors", name="own_tied:Own"), own)


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "sharded"])
def test_folder_of_hugging_face_is_read(tmp_path: Path, form: str) -> None:
    state = trained().state_dict()
    if form == "model.safetensors":
        save_file(state, tmp_path / form)
    elif form == "pytorch_model.bin":
        torch.save(state, tmp_path / form)
    else:
        names = list(state)
        parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
        for part, inside in parts.items():
            save_file({name: state[name] for name in inside}, tmp_path / part)
        weight_map = {name: part for part, inside in parts.items() for name in inside}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_loaded(load(tmp_path), state)


@pytest.mark.parametrize("parts", [{"a": "missing.safetensors"}, {"a": "../other.safetensors"}, None])
def test_bad_index_of_a_folder_is_one_sentence(tmp_path: Path, parts: dict[str, str] | None) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{" if parts is None else json.dumps({"weight_map": parts}))
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"model.weights={tmp_path}")
    assert "\n" not in str(caught.value)


def test_layers_whose_outputs_are_classes_are_heads_in_a_user_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_heads.py").write_text(
        "from torch import nn\n"
        "class Own(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.body = nn.Linear(4, 5)\n"
        "        self.early, self.late = nn.Linear(5, num_classes), nn.Linear(5, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = build_model(Model(name="own_heads:Own"), num_classes=1000, in_channels=1).state_dict()
    torch.save(own, tmp_path / "saved.pth")
    loaded = load(tmp_path / "saved.pth", name="own_heads:Own").state_dict()
    assert torch.equal(loaded["body.weight"], own["body.weight"])
    torch.save({**own, "body.weight": torch.zeros(6, 4)}, tmp_path / "saved.pth")
    with pytest.raises(ModelError, match=r"body\.weight is 6x4 but should be 5x4"):
        load(tmp_path / "saved.pth", name="own_heads:Own")
