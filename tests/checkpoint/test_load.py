"""Checkpoints are restored bit by bit, on any number of processes, and never run code."""

import io
import json
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, BytesStorageMetadata, Metadata

from distrain.checkpoint.load import describe_tensors, load_tensors, read_model
from distrain.checkpoint.tensors import gather_tensors, weights_digest
from distrain.distributed.world import World
from distrain.errors import CheckpointError
from distrain.runs import checkpoints
from distrain.runs.checkpoints.integrity import describe_files
from tests.checkpoint.factories import SINGLE, checkpointer, make_training, save, take_step
from tests.processes import run_ranks

RULES = ["sgd", "adam", "adamw", "rmsprop"]


@pytest.mark.parametrize("rule", RULES)
def test_training_resumed_from_a_checkpoint_has_equal_bits(tmp_path: Path, rule: str) -> None:
    model, optimizer = make_training(rule)
    for seed in range(3):
        take_step(model, optimizer, seed)
    save(tmp_path, model, optimizer, 3)
    other, other_optimizer = make_training(rule)
    checkpoint, messages = checkpoints.latest_valid(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.state["n"], messages) == (3, 3, [])
    load_tensors(checkpoint, model=other, optimizer=other_optimizer, world=SINGLE)
    for seed in range(3, 6):
        take_step(model, optimizer, seed)
        take_step(other, other_optimizer, seed)
    assert weights_digest(model) == weights_digest(other)


@pytest.mark.parametrize("rule", RULES)
def test_weights_buffers_and_optimizer_state_are_restored_exactly(tmp_path: Path, rule: str) -> None:
    model, optimizer = make_training(rule)
    take_step(model, optimizer, 0)
    save(tmp_path, model, optimizer, 1)
    other, other_optimizer = make_training(rule)
    load_tensors(checkpoints.read(tmp_path / "step-00000001"), model=other, optimizer=other_optimizer, world=SINGLE)
    saved = gather_tensors(model, optimizer)
    loaded = gather_tensors(other, other_optimizer)
    assert any(name.startswith("optimizer.") for name in saved)
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name


def resume(world: World, folder: Path, first: int, last: int) -> None:
    """Load the checkpoint of step `first`, train up to step `last`, and save a checkpoint there."""
    torch.manual_seed(world.rank)  # other weights on every rank, which the load must replace
    model, optimizer = make_training("adamw")
    if first:
        load_tensors(
            checkpoints.read(checkpoints.final_path(folder, first)), model=model, optimizer=optimizer, world=world
        )
    else:
        torch.manual_seed(0)
        model, optimizer = make_training("adamw")
    for step in range(first, last):
        take_step(model, optimizer, step)
    with checkpointer(folder, world) as writer:
        writer.save(last, tensors=gather_tensors(model, optimizer), state={"digest": weights_digest(model)})


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread, as `run_ranks` does in its processes: another number of threads rounds differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_checkpoints_are_read_on_any_number_of_processes(tmp_path: Path) -> None:
    for link, world_size in enumerate([1, 2, 3, 1]):
        run_ranks(resume, tmp_path, world_size, tmp_path / "chain", 2 * link, 2 * link + 2)
    resume(SINGLE, tmp_path / "alone", 0, 8)
    assert checkpoints.latest_valid(tmp_path / "chain")[1] == []
    assert len(list((tmp_path / "chain" / "step-00000006").glob("*.distcp"))) == 3
    ends = [checkpoints.read(tmp_path / name / "step-00000008").state["digest"] for name in ("chain", "alone")]
    assert ends[0] == ends[1]


def save_sharded(world: World, folder: Path) -> None:
    """Train with FSDP2 and save at two steps; also save the initial weights as a plain model."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model, _ = make_training("adamw")
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    with checkpointer(folder, world) as writer:
        writer.save(1, tensors=gather_tensors(model, optimizer), state={"n": 1})
        take_step(model, optimizer, 0)  # during the save
        writer.save(2, tensors=gather_tensors(model, optimizer), state={"n": 2})
    if world.is_rank_zero:
        torch.save(plain, folder / "plain.pt")
    dist.barrier()


def test_checkpoint_of_a_sharded_model_is_read_into_the_plain_model(tmp_path: Path) -> None:
    run_ranks(save_sharded, tmp_path, 2, tmp_path / "run")
    before = torch.load(tmp_path / "run" / "plain.pt", weights_only=True)
    checkpoint, messages = checkpoints.latest_valid(tmp_path / "run")
    assert checkpoint is not None
    assert (messages, checkpoint.step) == ([], 2)
    first = read_model(tmp_path / "run" / "step-00000001")
    assert first.keys() == before.keys()
    assert all(torch.equal(first[name], before[name]) for name in before)
    model, optimizer = make_training("adamw")
    load_tensors(checkpoint, model=model, optimizer=optimizer, world=SINGLE)
    assert not torch.equal(model.state_dict()["1.weight"], before["1.weight"])
    assert len(optimizer.state) == len(list(model.parameters()))


def test_tensors_are_described_without_reading_them(tmp_path: Path) -> None:
    model, optimizer = make_training()
    take_step(model, optimizer, 0)
    save(tmp_path, model, optimizer, 1)
    for shard in tmp_path.glob("*/*.distcp"):
        shard.unlink()
    described = describe_tensors(tmp_path / "step-00000001")
    assert described["model.1.weight"] == ([6, 12], "float32")
    assert described["model.2.num_batches_tracked"] == ([], "int64")
    assert described["optimizer.1.weight.momentum_buffer"] == ([6, 12], "float32")


class Hostile:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def renew_manifest(path: Path) -> None:
    """Update the digests after a change, so that only the reader can detect the hostile content."""
    files = [file for file in path.iterdir() if file.name != "MANIFEST.json"]
    (path / "MANIFEST.json").write_text(json.dumps({"files": describe_files(files)}))
    assert checkpoints.find_corruption(path) is None


def assert_refused(folder: Path, *fragments: str) -> None:
    """Check that every reader refuses the checkpoint with a one-line error, and runs no code."""
    (path,) = checkpoints.committed(folder)
    renew_manifest(path)
    model, optimizer = make_training()
    with pytest.raises(CheckpointError) as caught:
        load_tensors(checkpoints.read(path), model=model, optimizer=optimizer, world=SINGLE)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        read_model(path)
    assert not (folder / "created").exists()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer = make_training()
    take_step(model, optimizer, 0)
    save(tmp_path, model, optimizer, 1)
    return tmp_path / "step-00000001"


class EarlierPickler(pickle.Pickler):
    """Pickles members of enums like Python before 3.11.4: as a call of getattr, with the arguments `fetched` if set."""

    fetched: tuple[type, str] | None = None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return getattr, self.fetched or (type(value), value.name)
        return NotImplemented


def rewrite_metadata(saved: Path, *, fetched: tuple[type, str] | None = None) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    with (saved / ".metadata").open("wb") as file:
        pickler = EarlierPickler(file)
        pickler.fetched = fetched
        pickler.dump(metadata)
    assert b"getattr" in (saved / ".metadata").read_bytes()
    renew_manifest(saved)


def test_metadata_of_python_before_3_11_4_is_read(saved: Path) -> None:
    before = read_model(saved)
    rewrite_metadata(saved)
    after = read_model(saved)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("fetched", [(Metadata, "__init__"), (OrderedDict, "popitem"), (_MEM_FORMAT_ENCODING, "mro")])
def test_metadata_with_getattr_of_another_object_is_refused(saved: Path, fetched: tuple[type, str]) -> None:
    rewrite_metadata(saved, fetched=fetched)
    assert_refused(saved.parent, "builtins.getattr, which could run code; refused")


def test_hostile_metadata_is_refused_and_does_not_run(saved: Path) -> None:
    (saved / ".metadata").write_bytes(pickle.dumps(Hostile(saved.parent / "created")))
    assert_refused(saved.parent, "posix.mkdir", "could run code; refused")


def test_hostile_object_inside_real_metadata_is_refused(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    metadata.planner_data = Hostile(saved.parent / "created")
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(saved.parent, "could run code; refused")


def test_metadata_that_declares_a_tensor_as_bytes_is_refused(saved: Path) -> None:
    """DCP unpickles entries of type bytes without any restriction."""
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    metadata.state_dict_metadata["model.1.weight"] = BytesStorageMetadata()
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(saved.parent, "BytesStorageMetadata, which could run code; refused")


def test_metadata_that_names_a_file_without_a_digest_is_refused(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    shutil.copy(saved / "__0_0.distcp", saved.parent / "other.distcp")
    for info in metadata.storage_data.values():
        info.relative_path = "../other.distcp"
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(saved.parent, "../other.distcp", "no digest")


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps([1, 2]), pickle.dumps(Metadata({}, None, None))]
)
def test_invalid_metadata_is_refused(saved: Path, content: bytes) -> None:
    (saved / ".metadata").write_bytes(content)
    assert_refused(saved.parent, ".metadata")


def test_hostile_shard_is_refused_and_does_not_run(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    buffer = io.BytesIO()
    torch.save(Hostile(saved.parent / "created"), buffer)
    (saved / "__0_0.distcp").write_bytes(buffer.getvalue())
    for info in metadata.storage_data.values():
        info.offset, info.length = 0, len(buffer.getvalue())
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(saved.parent, "could run code; refused")


@pytest.mark.parametrize("protocol", [0, 2])
def test_hostile_shard_in_the_old_format_is_refused(saved: Path, protocol: int) -> None:
    """`torch.load` also reads bare pickles, the format before archives."""
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    content = pickle.dumps(Hostile(saved.parent / "created"), protocol=protocol)
    (saved / "__0_0.distcp").write_bytes(content)
    for info in metadata.storage_data.values():
        info.offset, info.length = 0, len(content)
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(saved.parent, "refused")


def test_hostile_state_file_is_refused_and_does_not_run(saved: Path) -> None:
    (saved / "state.json").write_bytes(pickle.dumps(Hostile(saved.parent / "created")))
    files = [file for file in saved.iterdir() if file.name != "MANIFEST.json"]
    (saved / "MANIFEST.json").write_text(json.dumps({"files": describe_files(files)}))
    checkpoint, messages = checkpoints.latest_valid(saved.parent)
    assert checkpoint is None
    assert "state.json is not valid" in messages[0]
    assert not (saved.parent / "created").exists()


def test_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match=r"step-00000001 has no model\.weight"):
        load_tensors(checkpoints.read(saved), model=model, optimizer=optimizer, world=SINGLE)
