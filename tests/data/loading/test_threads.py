"""Loader threads keep the order, read a bounded number of batches ahead, and end when they are closed."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from distrain.data.loading.sampler import MicroBatch
from distrain.data.loading.threads import MIN_BATCHES_AHEAD, SAMPLES_AHEAD, ReadSample, Sample, read_in_threads

CPU = torch.device("cpu")


def micro_batches(count: int, size: int = 3) -> list[MicroBatch]:
    return [MicroBatch(np.arange(size * number, size * (number + 1))) for number in range(count)]


def number_of(micro_batch: MicroBatch) -> ReadSample:
    def read(position: int, out: torch.Tensor | None) -> Sample:
        index = int(micro_batch.indices[position])
        time.sleep(0.002 * (index % 3))  # a later sample is often there first
        if out is not None and index % 2:
            return out.fill_(index), index
        return torch.full((1, 2, 2), index, dtype=torch.int64), index

    return read


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("distrain-loader")]


@pytest.mark.parametrize("num_threads", [1, 4])
def test_batches_come_in_order_with_their_samples_in_order(num_threads: int) -> None:
    reading = read_in_threads(number_of, iter(micro_batches(9)), num_threads=num_threads, device=CPU)
    found = list(reading)
    assert [micro_batch.indices[0] for micro_batch, _ in found] == list(range(0, 27, 3))
    for micro_batch, gathered in found:
        assert gathered is not None
        images, targets = gathered
        assert images[:, 0, 0, 0].tolist() == targets == micro_batch.indices.tolist()
    assert not loader_threads()


def test_threads_read_a_bounded_number_of_batches_ahead_and_end_when_closed() -> None:
    asked = []

    def upcoming() -> Iterator[MicroBatch]:
        for micro_batch in micro_batches(1000):
            asked.append(micro_batch)
            yield micro_batch

    with closing(read_in_threads(number_of, upcoming(), num_threads=2, device=CPU)) as reading:
        for _ in range(5):
            next(reading)
        time.sleep(0.05)
        ahead = max(MIN_BATCHES_AHEAD, -(-SAMPLES_AHEAD * 2 // 3))
        assert len(asked) == 4 + ahead
        assert len(loader_threads()) == 2
    assert not loader_threads()


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), StopIteration()])
def test_exit_in_a_loader_thread_fails_its_batch_but_not_the_thread(error: BaseException) -> None:
    def begin(micro_batch: MicroBatch) -> ReadSample:
        read = number_of(micro_batch)

        def end(position: int, out: torch.Tensor | None) -> Sample:
            if micro_batch.indices[position] == 4:
                raise error
            return read(position, out)

        return end

    reading = read_in_threads(begin, iter(micro_batches(4)), num_threads=2, device=CPU)
    assert [gathered is None for _, gathered in reading] == [False, True, False, False]


@pytest.mark.parametrize("fault", ["raises", "shape", "dtype"])
def test_failed_batch_is_reported_in_order_and_the_others_are_read(fault: str) -> None:
    def begin(micro_batch: MicroBatch) -> ReadSample:
        read = number_of(micro_batch)

        def faulty(position: int, out: torch.Tensor | None) -> Sample:
            image, target = read(position, out)
            if target != 7:
                return image, target
            if fault == "raises":
                raise RuntimeError("of the user's code")
            return (image[:, :1] if fault == "shape" else image.float()), target

        return faulty

    found = list(read_in_threads(begin, micro_batches(5), num_threads=2, device=CPU))
    assert [gathered is None for _, gathered in found] == [False, False, True, False, False]


def test_error_of_the_order_is_raised_and_leaves_no_thread() -> None:
    def upcoming() -> Iterator[MicroBatch]:
        yield from micro_batches(1)
        raise LookupError("the order ends here")

    with pytest.raises(LookupError):
        list(read_in_threads(number_of, upcoming(), num_threads=2, device=CPU))
    assert not loader_threads()


def test_threads_use_one_intra_op_thread_and_leave_other_threads_unchanged() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        counts = []

        def begin(micro_batch: MicroBatch) -> ReadSample:
            def read(position: int, out: torch.Tensor | None) -> Sample:
                counts.append(torch.get_num_threads())
                return torch.zeros(1), 0

            return read

        list(read_in_threads(begin, micro_batches(4), num_threads=2, device=CPU))
        assert set(counts) == {1}
        assert torch.get_num_threads() == 3
        of_others = []
        other = threading.Thread(target=lambda: of_others.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert of_others == [3]
    finally:
        torch.set_num_threads(before)
