"""Checkpoints come back to the bit, are refused when a byte of them is wrong, and never run code."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distrain import checkpoint
from distrain.errors import CheckpointError
from distrain.optim import build_optimizer
from distrain.recipe import Optimizer
from distrain.world import World

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def make(rule: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    options = {"momentum": 0.9} if rule in {"sgd", "rmsprop"} else {}
    return model, build_optimizer(Optimizer.model_validate({"name": rule, "lr": 0.01, **options}), model)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 12, generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(model(images), torch.arange(8) % 3).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, *, keep_last: int = 9) -> None:
    checkpoint.save(
        folder,
        step=step,
        model=model,
        optimizer=optimizer,
        average={},
        state={"n": step},
        keep_last=keep_last,
        world=ALONE,
    )


@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw", "rmsprop"])
def test_training_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path, rule: str) -> None:
    model, optimizer = make(rule)
    for seed in range(3):
        take_step(model, optimizer, seed)
    save(tmp_path, model, optimizer, 3)
    other, other_optimizer = make(rule)
    found, complaints = checkpoint.newest_good(tmp_path)
    assert found is not None
    assert (found.step, found.state["n"], complaints) == (3, 3, [])
    checkpoint.load_tensors(found, model=other, optimizer=other_optimizer, average={}, world=ALONE)
    for seed in range(3, 6):
        take_step(model, optimizer, seed)
        take_step(other, other_optimizer, seed)
    assert checkpoint.digest_tensors(model.state_dict()) == checkpoint.digest_tensors(other.state_dict())


@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw", "rmsprop"])
def test_weights_buffers_and_optimizer_state_come_back_to_the_bit(tmp_path: Path, rule: str) -> None:
    model, optimizer = make(rule)
    take_step(model, optimizer, 0)
    save(tmp_path, model, optimizer, 1)
    other, other_optimizer = make(rule)
    found, _ = checkpoint.newest_good(tmp_path)
    assert found is not None
    checkpoint.load_tensors(found, model=other, optimizer=other_optimizer, average={}, world=ALONE)
    saved = checkpoint.gather_tensors(model, optimizer, {})
    loaded = checkpoint.gather_tensors(other, other_optimizer, {})
    assert any(name.startswith("optimizer.") for name in saved)
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json", "MANIFEST.json"])
def test_damaged_checkpoint_is_quarantined_and_the_older_one_used(tmp_path: Path, name: str, damage: str) -> None:
    model, optimizer = make("sgd")
    for step in (1, 2):
        take_step(model, optimizer, step)
        save(tmp_path, model, optimizer, step)
    file = checkpoint.committed(tmp_path)[-1] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "flipped":
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    found, complaints = checkpoint.newest_good(tmp_path)
    assert found is not None
    assert found.step == 1
    assert len(complaints) == 1
    assert "step-00000002" in complaints[0]
    assert (tmp_path / "quarantine" / "step-00000002").is_dir()


def test_any_flipped_byte_of_the_manifest_is_found(tmp_path: Path) -> None:
    model, optimizer = make("sgd")
    save(tmp_path, model, optimizer, 1)
    (path,) = checkpoint.committed(tmp_path)
    manifest = path / "MANIFEST.json"
    content = manifest.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1
        manifest.write_bytes(flipped)
        assert checkpoint.find_fault(path) is not None, flipped[max(0, position - 20) : position + 20]
    manifest.write_bytes(content)
    assert checkpoint.find_fault(path) is None


class Hostile:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_hostile_metadata_is_refused_and_does_not_run(tmp_path: Path) -> None:
    model, optimizer = make("sgd")
    save(tmp_path, model, optimizer, 1)
    found, _ = checkpoint.newest_good(tmp_path)
    assert found is not None
    (found.path / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "made")))
    with pytest.raises(CheckpointError, match="could run code"):
        checkpoint.load_tensors(found, model=model, optimizer=optimizer, average={}, world=ALONE)
    assert not (tmp_path / "made").exists()


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    model, optimizer = make("sgd")
    for step in range(1, 5):
        save(tmp_path, model, optimizer, step, keep_last=2)
    assert [path.name for path in checkpoint.committed(tmp_path)] == ["step-00000003", "step-00000004"]


def test_half_written_checkpoint_is_never_read(tmp_path: Path) -> None:
    model, optimizer = make("sgd")
    save(tmp_path, model, optimizer, 1)
    checkpoint.committed(tmp_path)[0].rename(tmp_path / "step-00000009.tmp")
    assert checkpoint.newest_good(tmp_path) == (None, [])
