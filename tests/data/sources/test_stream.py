"""A stream gives the same samples at the same positions in any number of processes and from any start."""

import random
from collections.abc import Iterator
from functools import partial
from itertools import chain
from tempfile import TemporaryFile

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from distrain.config import Data
from distrain.config.batching import solve_batching
from distrain.data.loading.epoch_order import build_sampler, stream_order
from distrain.data.loading.loader import BatchReader, read_batches
from distrain.data.loading.sampler import TrainSampler
from distrain.data.sources.base import DatasetSource
from distrain.data.sources.registry import open_sources
from distrain.data.sources.stream import Stream, is_stream, open_stream
from distrain.errors import DataError, UserError

CPU = torch.device("cpu")
LENGTH = 23
Sample = tuple[torch.Tensor, int]


def sample(epoch: int, position: int) -> Sample:
    return torch.tensor([[[epoch, position]]], dtype=torch.uint8), position % 3


class Plain:
    """Iterates from the beginning only, and counts the samples read."""

    classes = ("a", "b", "c")

    def __init__(self) -> None:
        self.epoch = 0
        self.num_read = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Sample]:
        return self._samples(self.epoch, 0)

    def _samples(self, epoch: int, start: int) -> Iterator[Sample]:
        for position in range(start, LENGTH):
            self.num_read += 1
            yield sample(epoch, position)


class Jumping(Plain):
    """Can begin anywhere."""

    def iter_from(self, epoch: int, start: int) -> Iterator[Sample]:
        return self._samples(epoch, start)


class FromFile(Plain):
    """Reads from an open file, whose offset it shares with the process that it is forked from."""

    def _samples(self, epoch: int, start: int) -> Iterator[Sample]:
        with TemporaryFile(buffering=0) as file:
            file.write(bytes(range(LENGTH)))
            file.seek(start)
            while position := file.read(1):
                yield sample(epoch, position[0])


class Torch(IterableDataset[Sample]):
    """Splits its samples over loader processes, as torch's documentation recommends."""

    classes = ("a", "b", "c")
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        step, first = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for position in range(first, LENGTH, step):
            yield sample(self.epoch, position)


class Drawing(Plain):
    """Shuffles at the start and augments each sample, with the global generators."""

    def _samples(self, epoch: int, start: int) -> Iterator[Sample]:
        order = np.random.permutation(LENGTH)[start:].tolist()

        def draw() -> Iterator[Sample]:
            for position in order:
                self.num_read += 1
                values = [[epoch, position, random.randrange(256), int(torch.randint(256, ()))]]
                yield torch.tensor([values], dtype=torch.uint8), position % 3

        return draw()


class JumpingAndDrawing(Drawing, Jumping):
    pass


def stream_of(dataset: object, num_samples: int = LENGTH) -> Stream:
    return Stream(dataset, name="mine:stream", num_samples=num_samples)


def read(stream: Stream, steps: range, *, world_size: int, workers: int) -> list[list[list[int]]]:
    """Return [epoch, position] and random draws of each sample, by step; 8 samples a step, in micro-batches of 2."""
    by_rank = []
    for rank in range(world_size):
        order = TrainSampler(
            num_samples=len(stream),
            sampler=partial(stream_order, num_samples=len(stream)),
            batching=solve_batching(8, 2, world_size),
            drop_last=False,
            rank=rank,
        )
        reader = BatchReader(DatasetSource(stream, name="mine:stream"), None, seed=0)
        batches = read_batches(reader, order.micro_batches(steps), num_workers=workers, device=CPU)
        own = [[next(batches) for _ in order.global_batch(step).local] for step in steps]
        batches.close()
        by_rank.append([[place for images, _ in step for place in images[:, 0, 0].tolist()] for step in own])
    return [list(chain(*step)) for step in zip(*by_rank, strict=True)]


@pytest.mark.parametrize("dataset", [Jumping, FromFile, Torch])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_samples_have_their_positions_in_any_number_of_processes(dataset: type, workers: int) -> None:
    expected = [[[epoch, p] for p in range(LENGTH)][at : at + 8] for epoch in (0, 1) for at in (0, 8, 16)]
    stream = stream_of(dataset())
    stream[0]  # as the training process looks at the first images before its loader processes begin
    for world_size in (1, 2):
        assert read(stream, range(6), world_size=world_size, workers=workers) == expected
    assert read(stream, range(4, 6), world_size=2, workers=workers) == expected[4:]  # a resume within epoch 1


@pytest.mark.parametrize("dataset", [Drawing, JumpingAndDrawing])
def test_random_draws_of_a_stream_are_the_same_in_any_number_of_processes(dataset: type) -> None:
    expected = read(stream_of(dataset()), range(6), world_size=1, workers=0)
    epochs = [list(chain(*expected[:3])), list(chain(*expected[3:]))]
    for epoch, found in enumerate(epochs):
        assert sorted(place[:2] for place in found) == [[epoch, position] for position in range(LENGTH)]
    assert [place[1] for place in epochs[0]] != [place[1] for place in epochs[1]] != list(range(LENGTH))
    for world_size, workers in ((1, 2), (2, 0), (2, 2)):
        assert read(stream_of(dataset()), range(6), world_size=world_size, workers=workers) == expected
    assert read(stream_of(dataset()), range(4, 6), world_size=2, workers=1) == expected[4:]


def test_stream_with_iter_from_reads_only_the_requested_samples() -> None:
    for dataset, num_read in ((Plain(), 23), (Jumping(), 8)):
        stream = stream_of(dataset)
        for number in (4, 5, 6, 7, 12, 13, 14, 22):
            assert stream[number][0].flatten().tolist() == [0, number]
        assert dataset.num_read == num_read
    plain = Plain()
    stream = stream_of(plain)
    assert [stream[number][0].flatten().tolist() for number in (30, 3, 2)] == [[1, 7], [0, 3], [0, 2]]
    assert plain.num_read == 8 + 4 + 3  # begun again for another epoch, and to go back


@pytest.mark.parametrize("dataset", [Plain, Jumping])
def test_stream_that_ends_early_is_one_sentence_from_a_loader_process_too(dataset: type) -> None:
    for workers in (0, 2):
        with pytest.raises(DataError) as caught:
            read(stream_of(dataset(), LENGTH + 1), range(3, 6), world_size=1, workers=workers)
        assert "in epoch 1 the stream ended before position 23" in str(caught.value)
        assert "an epoch has 24 samples" in str(caught.value)


def test_error_names_the_position_of_a_bad_label() -> None:
    source = DatasetSource(stream_of(Plain()), name="mine:stream")
    source.classes = ["a", "b"]
    with pytest.raises(DataError, match=r"^sample 5 of epoch 1 of mine:stream has label 2, outside 0 to 1"):
        source.read(LENGTH + 5)


class Long(Plain):
    def __len__(self) -> int:
        return LENGTH


class Indexed(Long):
    def __getitem__(self, index: int) -> Sample:
        return sample(0, index)


def make_plain(split: str, path: str | None) -> Plain:
    return Plain()


def make_long(split: str, path: str | None) -> Plain:
    return Long()


def make_indexed(split: str, path: str | None) -> Indexed:
    return Indexed()


def config(factory: str, **changes: object) -> Data:
    return Data.model_validate({"source": f"{__name__}:{factory}", "batch_size": 8, **changes})


def test_dataset_that_can_be_indexed_is_not_a_stream() -> None:
    assert [is_stream(thing) for thing in (Plain(), Torch(), Indexed(), [1, 2], 3)] == [True, True, False, False, False]


def test_length_comes_from_the_dataset_or_the_recipe() -> None:
    def lengths(data: Data) -> list[int]:
        return [len(source) for source in open_sources(data).values()]

    assert lengths(config("make_long")) == [LENGTH, LENGTH]
    assert lengths(config("make_long", samples_per_epoch=20, val_samples=5)) == [20, 5]
    assert lengths(config("make_plain", samples_per_epoch=50, val_samples=7)) == [50, 7]
    assert lengths(config("make_indexed", val_samples=5)) == [LENGTH, LENGTH]  # cut by `choose_samples`
    assert np.array_equal(
        build_sampler(config("make_long"), open_sources(config("make_long"))["train"], seed=3)(2).indices,
        np.arange(2 * LENGTH, 3 * LENGTH),
    )


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (config("make_plain"), "the train split is a stream without len(); set data.samples_per_epoch to its length"),
        (config("make_plain", samples_per_epoch=9), "the val split is a stream without len(); set data.val_sam"),
        (config("make_long", samples_per_epoch=24), "data.samples_per_epoch=24 is more than 23, the len"),
        (config("make_long", train_samples=9), "use data.samples_per_epoch to read its first samples"),
        (config("make_indexed", samples_per_epoch=9), "data.samples_per_epoch=9 is for streams, but data.source="),
        (Data(source="digits", batch_size=8, samples_per_epoch=9), "is for streams, but data.source=digits is not one"),
        (config("make_long", repeats=2), "so data.repeats=2 is not available; use 1, or a dataset"),
        (config("make_long", sampling="balanced"), "so data.sampling=balanced is not available; use uniform"),
    ],
)
def test_what_a_stream_cannot_do_is_one_sentence(data: Data, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build_sampler(data, open_sources(data)["train"], seed=0)
    assert sentence in str(caught.value)


def test_stream_without_classes_is_one_sentence() -> None:
    with pytest.raises(DataError, match="has no `classes`"):
        open_stream((n for n in range(3)), name="mine:stream", split="train", num_samples=3)
