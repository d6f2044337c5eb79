"""Checkpoints come back to the bit, on any number of processes, and never run code."""

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
from tests.checkpoint.making import ALONE, checkpointer, make, save, take_step
from tests.processes import run_ranks

RULES = ["sgd", "adam", "adamw", "rmsprop"]


@pytest.mark.parametrize("rule", RULES)
def test_training_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path, rule: str) -> None:
    model, optimizer = make(rule)
    for seed in range(3):
        take_step(model, optimizer, seed)
    save(tmp_path, model, optimizer, 3)
    other, other_optimizer = make(rule)
    found, complaints = checkpoints.latest_valid(tmp_path)
    assert found is not None
    assert (found.step, found.state["n"], complaints) == (3, 3, [])
    load_tensors(found, model=other, optimizer=other_optimizer, world=ALONE)
    for seed in range(3, 6):
        take_step(model, optimizer, seed)
        take_step(other, other_optimizer, seed)
    assert weights_digest(model) == weights_digest(other)


@pytest.mark.parametrize("rule", RULES)
def test_weights_buffers_and_optimizer_state_come_back_to_the_bit(tmp_path: Path, rule: str) -> None:
    model, optimizer = make(rule)
    take_step(model, optimizer, 0)
    save(tmp_path, model, optimizer, 1)
    other, other_optimizer = make(rule)
    load_tensors(checkpoints.read(tmp_path / "step-00000001"), model=other, optimizer=other_optimizer, world=ALONE)
    saved = gather_tensors(model, optimizer)
    loaded = gather_tensors(other, other_optimizer)
    assert any(name.startswith("optimizer.") for name in saved)
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name


def go_on(world: World, folder: Path, first: int, last: int) -> None:
    """Load the checkpoint of step `first`, train to `last` as one more link of the chain, and save."""
    torch.manual_seed(world.rank)  # weights that the load must replace on every rank
    model, optimizer = make("adamw")
    if first:
        load_tensors(
            checkpoints.read(checkpoints.final_path(folder, first)), model=model, optimizer=optimizer, world=world
        )
    else:
        torch.manual_seed(0)
        model, optimizer = make("adamw")
    for step in range(first, last):
        take_step(model, optimizer, step)
    with checkpointer(folder, world) as writer:
        writer.save(last, tensors=gather_tensors(model, optimizer), state={"digest": weights_digest(model)})


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as `run_ranks` gives its processes: another number rounds differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_any_number_of_processes_reads_what_any_other_wrote(tmp_path: Path) -> None:
    for link, world_size in enumerate([1, 2, 3, 1]):
        run_ranks(go_on, tmp_path, world_size, tmp_path / "chain", 2 * link, 2 * link + 2)
    go_on(ALONE, tmp_path / "alone", 0, 8)
    assert checkpoints.latest_valid(tmp_path / "chain")[1] == []
    assert len(list((tmp_path / "chain" / "step-00000006").glob("*.distcp"))) == 3
    ends = [checkpoints.read(tmp_path / name / "step-00000008").state["digest"] for name in ("chain", "alone")]
    assert ends[0] == ends[1]


def save_sharded(world: World, folder: Path) -> None:
    """Train two steps with FSDP2 and save; the plain model with the same weights goes beside it."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model, _ = make("adamw")
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    with checkpointer(folder, world) as writer:
        writer.save(1, tensors=gather_tensors(model, optimizer), state={"n": 1})
        take_step(model, optimizer, 0)  # while the save is under way
        writer.save(2, tensors=gather_tensors(model, optimizer), state={"n": 2})
    if world.is_rank_zero:
        torch.save(plain, folder / "plain.pt")
    dist.barrier()


def test_sharded_training_is_read_by_the_plain_model(tmp_path: Path) -> None:
    run_ranks(save_sharded, tmp_path, 2, tmp_path / "run")
    before = torch.load(tmp_path / "run" / "plain.pt", weights_only=True)
    found, complaints = checkpoints.latest_valid(tmp_path / "run")
    assert found is not None
    assert (complaints, found.step) == ([], 2)
    first = read_model(tmp_path / "run" / "step-00000001")
    assert first.keys() == before.keys()
    assert all(torch.equal(first[name], before[name]) for name in before)
    model, optimizer = make("adamw")
    load_tensors(found, model=model, optimizer=optimizer, world=ALONE)
    assert not torch.equal(model.state_dict()["1.weight"], before["1.weight"])
    assert len(optimizer.state) == len(list(model.parameters()))


def test_tensors_are_described_without_reading_them(tmp_path: Path) -> None:
    model, optimizer = make()
    take_step(model, optimizer, 0)
    save(tmp_path, model, optimizer, 1)
    for shard in tmp_path.glob("*/*.distcp"):
        shard.unlink()
    described = describe_tensors(tmp_path / "step-00000001")
    assert described["model.1.weight"] == ([6, 12], "float32")
    assert described["model.2.num_batches_tracked"] == ([], "int64")
    assert described["optimizer.1.weight.momentum_buffer"] == ([6, 12], "float32")


class Hostile:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def renew_manifest(path: Path) -> None:
    """Make the digests right again, so that only the reader stands between the checkpoint and the program."""
    files = [file for file in path.iterdir() if file.name != "MANIFEST.json"]
    (path / "MANIFEST.json").write_text(json.dumps({"files": describe_files(files)}))
    assert checkpoints.find_corruption(path) is None


def assert_refused(folder: Path, *words: str) -> None:
    """The checkpoint is refused by every reader, in one sentence, with nothing run and the checkpoint in its place."""
    (path,) = checkpoints.committed(folder)
    renew_manifest(path)
    model, optimizer = make()
    with pytest.raises(CheckpointError) as caught:
        load_tensors(checkpoints.read(path), model=model, optimizer=optimizer, world=ALONE)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        read_model(path)
    assert not (folder / "made").exists()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer = make()
    take_step(model, optimizer, 0)
    save(tmp_path, model, optimizer, 1)
    return tmp_path / "step-00000001"


class EarlierPickler(pickle.Pickler):
    """Writes members of enums as Python did before 3.11.4, and what `fetched` names in the same way."""

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
def test_metadata_that_fetches_what_is_no_member_of_an_enum_is_refused(saved: Path, fetched: tuple[type, str]) -> None:
    rewrite_metadata(saved, fetched=fetched)
    assert_refused(saved.parent, "builtins.getattr, which could run code; refused")


def test_hostile_metadata_is_refused_and_does_not_run(saved: Path) -> None:
    (saved / ".metadata").write_bytes(pickle.dumps(Hostile(saved.parent / "made")))
    assert_refused(saved.parent, "posix.mkdir", "could run code; refused")


def test_hostile_object_inside_real_metadata_is_refused(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    metadata.planner_data = Hostile(saved.parent / "made")
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(saved.parent, "could run code; refused")


def test_metadata_that_calls_a_tensor_a_pickle_is_refused(saved: Path) -> None:
    """DCP unpickles entries of bytes without restraint."""
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
def test_metadata_that_is_none_is_refused(saved: Path, content: bytes) -> None:
    (saved / ".metadata").write_bytes(content)
    assert_refused(saved.parent, ".metadata")


def test_hostile_shard_is_refused_and_does_not_run(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    buffer = io.BytesIO()
    torch.save(Hostile(saved.parent / "made"), buffer)
    (saved / "__0_0.distcp").write_bytes(buffer.getvalue())
    for info in metadata.storage_data.values():
        info.offset, info.length = 0, len(buffer.getvalue())
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(saved.parent, "could run code; refused")


@pytest.mark.parametrize("protocol", [0, 2])
def test_hostile_shard_in_the_old_format_is_refused(saved: Path, protocol: int) -> None:
    """`torch.load` also reads bare pickles, as torch wrote them before it wrote archives."""
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    content = pickle.dumps(Hostile(saved.parent / "made"), protocol=protocol)
    (saved / "__0_0.distcp").write_bytes(content)
    for info in metadata.storage_data.values():
        info.offset, info.length = 0, len(content)
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(saved.parent, "refused")


def test_state_is_json_that_runs_nothing(saved: Path) -> None:
    (saved / "state.json").write_bytes(pickle.dumps(Hostile(saved.parent / "made")))
    files = [file for file in saved.iterdir() if file.name != "MANIFEST.json"]
    (saved / "MANIFEST.json").write_text(json.dumps({"files": describe_files(files)}))
    found, complaints = checkpoints.latest_valid(saved.parent)
    assert found is None
    assert "state.json is not valid" in complaints[0]
    assert not (saved.parent / "made").exists()


def test_checkpoint_of_another_model_is_named(saved: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match=r"step-00000001 has no model\.weight"):
        load_tensors(checkpoints.read(saved), model=model, optimizer=optimizer, world=ALONE)
