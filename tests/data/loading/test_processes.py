"""Loader processes keep the order, reuse memory only when it is free, and end in every case."""

import faulthandler
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from distrain.data.loading import processes
from distrain.data.loading.processes import BATCHES_AHEAD, SPARE_SLOTS, Note
from distrain.data.loading.sampler import MicroBatch
from distrain.data.sources.base import Allocator, Batch
from distrain.errors import DataError

read_in_processes = partial(processes.read_in_processes, describe="photos/{}.jpg".format)


def micro_batches(count: int) -> list[MicroBatch]:
    return [MicroBatch(np.array([number, number + 1])) for number in range(count)]


def numbered(micro_batch: MicroBatch, empty: Allocator, note: Note) -> Batch:
    """Images filled with their numbers; the first batches are smaller than the later ones."""
    number = int(micro_batch.indices[0])
    time.sleep(0.002 * (number % 3))  # a later batch is often there first
    images = empty((2, 4 + number % 5, 4, 3), dtype=torch.int32).permute(0, 3, 1, 2)
    images[0], images[1] = number, number + 1
    return images, torch.from_numpy(micro_batch.indices.copy())


def segmentation_fault() -> None:
    faulthandler.disable()  # pytest's: it would tell of it
    os.kill(os.getpid(), signal.SIGSEGV)


def loader_processes() -> list[BaseProcess]:
    return [child for child in multiprocessing.active_children() if child.name == "distrain-loader"]


@pytest.mark.parametrize("num_processes", [1, 3])
def test_batches_come_in_order_and_keep_their_content_while_they_are_in_use(num_processes: int) -> None:
    reading = read_in_processes(numbered, iter(micro_batches(40)), num_processes=num_processes)
    held: list[Batch] = []
    for batch in reading:
        assert isinstance(batch, tuple)
        held.append(batch)  # many more than there is memory to spare for
    assert len(held) == 40
    for number, (images, targets) in enumerate(held):
        assert images.shape == (2, 3, 4 + number % 5, 4)
        assert targets.tolist() == [number, number + 1]
        assert images[:, 0, 0, 0].tolist() == [number, number + 1]
        assert images[0].eq(number).all()
        assert images[1].eq(number + 1).all()
    assert not loader_processes()


def test_memory_is_reused_once_it_is_free_and_a_view_keeps_it() -> None:
    with closing(read_in_processes(numbered, iter(micro_batches(60)), num_processes=1)) as reading:
        [kept] = [batch[0][:1, :1] for batch in [next(reading)] if isinstance(batch, tuple)]
        addresses = set()
        for _ in range(50):
            batch = next(reading)
            assert isinstance(batch, tuple)
            addresses.add(batch[0].data_ptr())
            del batch
        assert len(addresses) < 4 * (BATCHES_AHEAD + SPARE_SLOTS)  # a slot moves when it grows
        assert kept.eq(0).all()


def test_nothing_is_left_open_or_mapped() -> None:
    def left() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count("distrain-batch")
        return len(list(Path("/proc/self/fd").iterdir())), maps

    before = left()
    for _ in range(2):
        list(read_in_processes(numbered, iter(micro_batches(9)), num_processes=2))
    assert left() == before


@pytest.mark.parametrize("kind", ["float64", "flipped"])
def test_images_that_were_not_allocated_in_a_slot_arrive_unchanged(kind: str) -> None:
    given = {
        "float64": torch.arange(24, dtype=torch.float64).reshape(2, 3, 2, 2),
        "flipped": torch.arange(24).reshape(2, 2, 3, 2).permute(0, 3, 1, 2).flip(-1).to(torch.bfloat16),
    }[kind]

    def read(_: MicroBatch, __: Allocator, ___: Note) -> Batch:
        return given, torch.tensor([[0.5, 1.0], [2.0, 3.0]])

    found = list(read_in_processes(read, micro_batches(4), num_processes=2))
    assert len(found) == 4
    for batch in found:
        assert isinstance(batch, tuple)
        assert batch[0].dtype == given.dtype
        assert torch.equal(batch[0], given)
        assert batch[1].tolist() == [[0.5, 1.0], [2.0, 3.0]]


def test_large_requests_and_responses_block_neither_side() -> None:
    def read(micro_batch: MicroBatch, empty: Allocator, note: Note) -> Batch:
        return empty((1,), dtype=torch.uint8), torch.zeros(len(micro_batch.indices), 2)

    large = [MicroBatch(np.arange(200_000)) for _ in range(8)]
    assert len(list(read_in_processes(read, large, num_processes=2))) == 8


def test_bad_data_comes_in_order_and_an_error_of_user_code_is_raised_with_its_traceback() -> None:
    class LocalError(Exception):  # defined here, so no other process could build it
        pass

    def read(micro_batch: MicroBatch, empty: Allocator, note: Note) -> Batch | DataError:
        number = int(micro_batch.indices[0])
        if number == 1:
            return DataError("b.jpg cannot be read")
        if number == 3:
            raise KeyError("a fault of the user's")
        if number == 5:
            raise LocalError("of a class that cannot travel")
        return numbered(micro_batch, empty, note)

    reading = read_in_processes(read, iter(micro_batches(9)), num_processes=2)
    kinds = [type(next(reading)) for _ in range(3)]
    assert kinds == [tuple, DataError, tuple]
    with pytest.raises(KeyError, match="a fault of the user's") as caught:
        next(reading)
    assert "in a loader process:\nTraceback" in caught.value.__notes__[0]
    assert "in read" in caught.value.__notes__[0]
    assert not loader_processes()
    with pytest.raises(RuntimeError, match="LocalError: of a class that cannot travel"):
        list(read_in_processes(read, [MicroBatch(np.array([5]))], num_processes=1))


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), StopIteration()])
def test_exit_in_a_loader_process_is_raised_as_an_error(error: BaseException) -> None:
    def read(micro_batch: MicroBatch, empty: Allocator, note: Note) -> Batch:
        if micro_batch.indices[0] == 3:
            raise error
        return numbered(micro_batch, empty, note)

    with pytest.raises(RuntimeError, match=r"before the run had finished, at .*test_processes.py:\d+, in read"):
        list(read_in_processes(read, micro_batches(9), num_processes=2))
    assert not loader_processes()


@pytest.mark.parametrize(
    ("die", "words"),
    [
        (segmentation_fault, "was killed by SIGSEGV"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"was killed by SIGKILL \(often out of memory.*\)"),
        (lambda: os._exit(3), "ended with exit code 3"),
    ],
)
def test_error_names_the_process_that_died_and_the_sample_that_it_was_reading(
    die: Callable[[], None], words: str
) -> None:
    def read(micro_batch: MicroBatch, empty: Allocator, note: Note) -> Batch:
        for index in micro_batch.indices.tolist():
            note(index)
            if index == 5:
                die()
        return numbered(micro_batch, empty, note)

    with pytest.raises(RuntimeError, match=rf"^loader process \d+ {words} while it read photos/5\.jpg$"):
        list(read_in_processes(read, micro_batches(9), num_processes=2))
    assert not loader_processes()


def test_error_of_a_process_that_dies_between_batches_names_no_file() -> None:
    with closing(read_in_processes(numbered, iter(micro_batches(40)), num_processes=1)) as reading:
        next(reading)
        [process] = loader_processes()
        process.kill()
        with pytest.raises(RuntimeError, match=r"was killed by SIGKILL \([^)]*\)$"):
            list(reading)


def test_processes_read_a_bounded_number_of_batches_ahead_and_end_when_closed() -> None:
    asked = []

    def upcoming() -> Iterator[MicroBatch]:
        for micro_batch in micro_batches(1000):
            asked.append(micro_batch)
            yield micro_batch

    with closing(read_in_processes(numbered, upcoming(), num_processes=2)) as reading:
        for _ in range(5):
            next(reading)
        assert len(asked) == 4 + 2 * BATCHES_AHEAD
        assert len(loader_processes()) == 2
        for process in loader_processes():
            process.terminate()  # as a stop that is sent to the whole group: the training wants its batches still
        assert isinstance(next(reading), tuple)
    assert not loader_processes()


def test_no_more_processes_are_started_than_there_are_batches() -> None:
    with closing(read_in_processes(numbered, iter(micro_batches(2)), num_processes=5)) as reading:
        next(reading)
        assert len(loader_processes()) == 2


def test_process_that_hangs_is_killed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrain.data.loading.processes._LAST_BATCH_S", 0.5)

    def read(micro_batch: MicroBatch, empty: Allocator, note: Note) -> Batch:
        if micro_batch.indices[0] == 1:
            time.sleep(1000)
        return numbered(micro_batch, empty, note)

    with closing(read_in_processes(read, iter(micro_batches(9)), num_processes=2)) as reading:
        next(reading)
        started = time.monotonic()
    assert 0.5 < time.monotonic() - started < 20
    assert not loader_processes()


def test_error_of_the_order_is_raised_and_leaves_no_process() -> None:
    def upcoming() -> Iterator[MicroBatch]:
        yield from micro_batches(1)
        raise LookupError("the order ends here")

    with pytest.raises(LookupError):
        list(read_in_processes(numbered, upcoming(), num_processes=2))
    assert not loader_processes()
