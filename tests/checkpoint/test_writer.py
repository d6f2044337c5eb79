"""Saves run in the background one at a time, and a failed one affects neither older checkpoints nor the training."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from distrain.checkpoint.load import load_tensors, read_model
from distrain.checkpoint.shards import write_shards
from distrain.checkpoint.staging import StagedTensors, Stager
from distrain.checkpoint.tensors import Tensors, changed_by_update, digest, gather_tensors, weights_digest
from distrain.distributed.fsdp import Fsdp
from distrain.distributed.world import World
from distrain.errors import CheckpointError, ModelError
from distrain.runs import checkpoints
from distrain.runs.checkpoints.integrity import Manifest, commit, describe_files
from tests.checkpoint.factories import SINGLE, checkpointer, make_training, save, take_step
from tests.disk import fill, small_disk
from tests.processes import run_ranks


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Simulate a slow disk: commits wait for this event."""
    event = threading.Event()

    def wait_and_commit(partial: Path, final: Path, *, state: str, shards: Manifest) -> None:
        assert event.wait(20)
        commit(partial, final, state=state, shards=shards)

    monkeypatch.setattr("distrain.checkpoint.writer.commit", wait_and_commit)
    yield event
    event.set()


def test_checkpoint_has_the_state_at_the_call(tmp_path: Path, slow_disk: threading.Event) -> None:
    model, optimizer = make_training()
    state = {"losses": [1.0, 2.0]}
    with checkpointer(tmp_path) as writer:
        before = weights_digest(model)
        writer.save(1, tensors=gather_tensors(model, optimizer), state=state)
        take_step(model, optimizer, 0)
        state["losses"].append(3.0)
        slow_disk.set()
    other, other_optimizer = make_training()
    checkpoint = checkpoints.read(tmp_path / "step-00000001")
    load_tensors(checkpoint, model=other, optimizer=other_optimizer, world=SINGLE)
    assert weights_digest(other) == before != weights_digest(model)
    assert checkpoint.state["losses"] == [1.0, 2.0]


def test_training_waits_for_the_copies_but_not_for_the_disk(tmp_path: Path, slow_disk: threading.Event) -> None:
    model, optimizer = make_training()
    with checkpointer(tmp_path) as writer:
        assert writer.pop_blocked_s() is None
        writer.save(1, tensors=gather_tensors(model, optimizer), state={})
        assert names(tmp_path) in ([], ["step-00000001.tmp"])
        blocked_s = writer.pop_blocked_s()
        assert blocked_s is not None
        assert blocked_s < 5
        assert writer.pop_blocked_s() is None
        slow_disk.set()
    assert names(tmp_path) == ["step-00000001"]


def test_second_save_waits_for_the_first_and_measures_the_time(tmp_path: Path, slow_disk: threading.Event) -> None:
    model, optimizer = make_training()
    with checkpointer(tmp_path) as writer:
        writer.save(1, tensors=gather_tensors(model, optimizer), state={})
        threading.Timer(0.5, slow_disk.set).start()
        writer.save(2, tensors=gather_tensors(model, optimizer), state={})
        assert names(tmp_path)[0] == "step-00000001"
        blocked_s = writer.pop_blocked_s()
        assert blocked_s is not None
        assert blocked_s > 0.3
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_synchronous_save_is_done_when_the_call_returns(tmp_path: Path) -> None:
    model, optimizer = make_training()
    with checkpointer(tmp_path, asynchronous=False) as writer:
        writer.save(1, tensors=gather_tensors(model, optimizer), state={})
        assert names(tmp_path) == ["step-00000001"]
        assert checkpoints.find_corruption(tmp_path / "step-00000001") is None


def test_copies_are_reused_while_names_and_shapes_stay() -> None:
    tensors = {"a": torch.ones(3, 4), "b": torch.tensor(5), "c": torch.empty(0, 2)}
    stager = Stager()
    first = stager.stage(StagedTensors(tensors))
    pointers = {name: tensor.data_ptr() for name, tensor in first.items()}
    tensors["a"][0, 0] = 7
    assert first["a"][0, 0] == 1
    second = stager.stage(StagedTensors(tensors))
    assert {name: tensor.data_ptr() for name, tensor in second.items()} == pointers
    assert all(torch.equal(second[name], tensors[name]) for name in tensors)
    third = stager.stage(StagedTensors({"a": torch.zeros(2), "d": torch.ones(1)}))
    assert {name: tensor.tolist() for name, tensor in third.items()} == {"a": [0, 0], "d": [1]}


def stage_a_share(world: World, folder: Path) -> None:
    """Save replicated tensors on all ranks, and compare with the files that torch alone would write."""
    torch.manual_seed(0)
    model, optimizer = make_training("adamw")
    take_step(model, optimizer, 0)
    tensors = gather_tensors(model, optimizer)
    staged: list[Tensors] = []
    with pytest.MonkeyPatch.context() as patch, checkpointer(folder, world) as writer:
        copy = Stager.stage

        def stage(stager: Stager, snapshot: StagedTensors) -> Tensors:
            staged.append(copy(stager, snapshot))
            return staged[-1]

        patch.setattr(Stager, "stage", stage)
        writer.save(1, tensors=tensors, state={})
        writer.save(2, tensors={"model.single": torch.ones(1)}, state={})  # rank 1 has nothing to write
    assert read_model(folder / "step-00000002")["single"].tolist() == [1.0]
    sizes = [num_bytes_of(staged[0])] * world.size
    dist.all_gather_object(sizes, sizes[0])
    assert sum(sizes) == num_bytes_of(tensors)
    assert max(sizes) < 0.7 * num_bytes_of(tensors)
    reference = folder / "reference"
    write_shards(reference, tensors, dist.group.WORLD)
    for shard in reference.glob("__*"):
        assert (folder / "step-00000001" / shard.name).read_bytes() == shard.read_bytes()


def num_bytes_of(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def test_each_rank_copies_what_it_writes_and_the_files_are_the_same(tmp_path: Path) -> None:
    run_ranks(stage_a_share, tmp_path, 2, tmp_path)


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that copy tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(word in str(func) for word in ("copy", "clone"))
        return func(*args, **(kwargs or {}))


def stage_shards(world: World) -> None:
    network = nn.Sequential(nn.Linear(12, 6), nn.Linear(6, 3))
    Fsdp(network, world, torch.zeros(1, 12))
    snapshot, copies = (
        StagedTensors(gather_tensors(network, torch.optim.SGD(network.parameters())), stable={"model.0.weight"}),
        Copies(),
    )
    with copies:
        staged = Stager().stage(snapshot)
    assert copies.count == 1  # one call for all tensors
    assert digest(staged) == digest(snapshot.tensors)


def test_shards_are_copied_in_one_call(tmp_path: Path) -> None:
    run_ranks(stage_shards, tmp_path, 2)


def test_ranks_with_different_tensors_write_no_checkpoint(tmp_path: Path) -> None:
    run_ranks(save_different_tensors, tmp_path, 2, tmp_path)


def save_different_tensors(world: World, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="different names"), checkpointer(folder, world) as writer:
        writer.save(1, tensors={f"of rank {world.rank}": torch.ones(1)}, state={})


def test_update_waits_until_the_weights_are_copied_but_forward_passes_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_copy, copy = threading.Event(), Stager.stage

    def wait_and_copy(stager: Stager, snapshot: StagedTensors) -> Tensors:
        assert may_copy.wait(20)
        return copy(stager, snapshot)

    monkeypatch.setattr(Stager, "stage", wait_and_copy)
    model, optimizer = make_training()
    tensors = gather_tensors(model, optimizer)
    before = digest(tensors)
    with checkpointer(tmp_path) as writer:
        writer.save(1, tensors=tensors, state={}, stable=changed_by_update(model, tensors))
        model(torch.randn(8, 12))
        assert digest(gather_tensors(model, optimizer)) != before  # BatchNorm's statistics
        threading.Timer(0.3, may_copy.set).start()
        started = time.monotonic()
        writer.wait_for_staging()
        assert time.monotonic() - started > 0.2
        take_step(model, optimizer, 0)
    assert (
        digest({f"model.{name}": tensor for name, tensor in read_model(tmp_path / "step-00000001").items()}) == before
    )


def test_change_of_weights_during_the_copy_is_an_error(tmp_path: Path) -> None:
    model, optimizer = make_training()
    tensors = gather_tensors(model, optimizer)
    with checkpointer(tmp_path) as writer:
        writer.save(1, tensors=tensors, state={}, stable=changed_by_update(model, tensors))
        with torch.no_grad():
            model.get_parameter("3.weight").clamp_(-1, 1)  # as a network may do in its forward pass
        with pytest.raises(ModelError, match="asynchronous=false"):
            writer.wait_for_staging()


def test_older_checkpoints_are_removed_only_after_the_newer_one_is_committed(
    tmp_path: Path, slow_disk: threading.Event
) -> None:
    model, optimizer = make_training()
    slow_disk.set()
    save(tmp_path, model, optimizer, 1)
    slow_disk.clear()
    with checkpointer(tmp_path, keep_last=1) as writer:
        writer.save(2, tensors=gather_tensors(model, optimizer), state={})
        time.sleep(0.3)
        assert [path.name for path in checkpoints.committed(tmp_path)] == ["step-00000001"]
        slow_disk.set()
    assert names(tmp_path) == ["step-00000002"]


def test_last_best_and_every_nth_checkpoint_are_kept(tmp_path: Path) -> None:
    model, optimizer = make_training()
    accuracy = {2: 0.5, 4: 0.9, 6: 0.9, 8: 0.7}
    with checkpointer(tmp_path, keep_last=2, keep_every_steps=5) as writer:
        for step in range(1, 12):
            evaluation = {"step": step, "val/loss": 1.0, "val/top1": accuracy[step]} if step in accuracy else None
            state = {"evaluation": evaluation, "best_by": "top1"}
            writer.save(step, tensors=gather_tensors(model, optimizer), state=state)
    assert [int(name[5:]) for name in names(tmp_path)] == [4, 5, 10, 11]


def test_failing_training_waits_for_the_save_in_progress(tmp_path: Path, slow_disk: threading.Event) -> None:
    model, optimizer = make_training()
    with pytest.raises(ArithmeticError), checkpointer(tmp_path) as writer:
        writer.save(1, tensors=gather_tensors(model, optimizer), state={})
        threading.Timer(0.3, slow_disk.set).start()
        raise ArithmeticError
    assert names(tmp_path) == ["step-00000001"]


def save_with_one_unexpected_error(world: World, folder: Path, rank: int) -> None:
    logging.getLogger("distrain").addHandler(logging.FileHandler(folder.parent / f"log-{world.rank}"))
    calls: list[list[Path]] = []

    def fail_once(files: list[Path]) -> Manifest:
        calls.append(files)
        if len(calls) == 1 and world.rank == rank:
            raise ZeroDivisionError("broken")
        return describe_files(files)

    with pytest.MonkeyPatch.context() as patch, checkpointer(folder, world) as writer:
        patch.setattr("distrain.checkpoint.writer.describe_files", fail_once)
        writer.save(1, tensors={"a": torch.randn(1000), "b": torch.randn(1000)}, state={})
        writer.wait()
        assert names(folder) == []
        writer.save(2, tensors={"a": torch.randn(1000), "b": torch.randn(1000)}, state={})
    assert names(folder) == ["step-00000002"]


@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (2, 1)])
def test_unexpected_error_ends_the_save_but_not_the_training(tmp_path: Path, world_size: int, rank: int) -> None:
    (tmp_path / "checkpoints").mkdir()
    run_ranks(save_with_one_unexpected_error, tmp_path, world_size, tmp_path / "checkpoints", rank)
    log = (tmp_path / f"log-{rank}").read_text()
    assert "ZeroDivisionError: broken" in log and "Traceback" in log


def test_checkpoint_is_overdue_after_every_minutes(tmp_path: Path) -> None:
    model, optimizer = make_training()
    with checkpointer(tmp_path, every_minutes=0.01) as writer:
        assert not writer.is_overdue()
        time.sleep(0.7)
        assert writer.is_overdue()
        writer.save(1, tensors=gather_tensors(model, optimizer), state={})
        assert not writer.is_overdue()
    with checkpointer(tmp_path) as writer:
        assert not writer.is_overdue()


def save_onto_full_disk(world: World, disk: Path) -> None:
    """Make a save that fits, two that do not, one that fits again, and a last one that does not, on all ranks."""
    logging.getLogger("distrain").addHandler(logging.FileHandler(disk.parent / f"log-{world.rank}"))
    folder = disk / "checkpoints"
    tensors = {"a": torch.randn(200_000), "b": torch.randn(200_000)}
    try:
        with checkpointer(folder, world, keep_last=1) as writer:
            writer.save(1, tensors=tensors, state={})
            writer.wait()
            filler = disk / "filler"
            if world.is_rank_zero:
                fill(disk, leave_bytes=900_000)  # room for one of the two tensors
            world.barrier()
            for step in (2, 3):
                writer.save(step, tensors=tensors, state={})
                writer.wait()
                assert names(folder) == ["step-00000001"]
                world.barrier()  # the next save creates a partial folder
            if world.is_rank_zero:
                filler.unlink()
            world.barrier()
            writer.save(4, tensors=tensors, state={})
            writer.wait()
            assert names(folder) == ["step-00000004"]
            world.barrier()
            if world.is_rank_zero:
                fill(disk)
            world.barrier()
            writer.save(5, tensors=tensors, state={})
    except CheckpointError as error:
        (disk.parent / f"error-{world.rank}").write_text(str(error))
    assert names(folder) == ["step-00000004"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_full_disk_keeps_the_older_checkpoint_and_warns_once_per_save(tmp_path: Path, world_size: int) -> None:
    with small_disk(tmp_path / "disk", mebibytes=5) as disk:
        run_ranks(save_onto_full_disk, tmp_path, world_size, disk)
        assert checkpoints.find_corruption(disk / "checkpoints" / "step-00000004") is None
    warnings = (tmp_path / "log-0").read_text().splitlines()
    assert len(warnings) == 3
    for warning, step, older in zip(warnings, (2, 3, 5), (1, 1, 4), strict=True):
        assert f"checkpoint step-{step:08d} could not be written: No space left on device; it needs 1.5 MiB" in warning
        assert f"the newest checkpoint is step-{older:08d}" in warning
    assert "0.9 MiB are free" in warnings[0]
    for rank in range(world_size):
        error = (tmp_path / f"error-{rank}").read_text()
        assert "step-00000005 could not be written: No space left on device" in error
        assert f"the weights are safe in {tmp_path}/disk/checkpoints/step-00000004" in error
        assert rank == 0 or (tmp_path / f"log-{rank}").read_text() == ""


def save_where_one_rank_fails(world: World, folder: Path) -> None:
    def refuse(_: list[Path]) -> Manifest:
        raise PermissionError(13, "Permission denied")

    tensors = {"a": torch.randn(1000), "b": torch.randn(1000)}
    with checkpointer(folder, world) as writer:
        writer.save(1, tensors=tensors, state={})
        writer.wait()
        with pytest.MonkeyPatch.context() as patch:
            if world.rank == 1:
                patch.setattr("distrain.checkpoint.writer.describe_files", refuse)
            writer.save(2, tensors=tensors, state={})
            writer.wait()
        assert names(folder) == ["step-00000001"]
        world.barrier()  # the next save creates a partial folder
        writer.save(3, tensors=tensors, state={})
    if world.rank == 1:
        pytest.MonkeyPatch().setattr("distrain.checkpoint.writer.describe_files", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"), checkpointer(folder, world) as writer:
        writer.save(4, tensors=tensors, state={})


def test_failure_of_one_rank_ends_the_save_on_all_of_them(tmp_path: Path) -> None:
    run_ranks(save_where_one_rank_fails, tmp_path, 2, tmp_path / "checkpoints")
    assert names(tmp_path / "checkpoints") == ["step-00000001", "step-00000003"]
    assert read_model(tmp_path / "checkpoints" / "step-00000003") == {}
