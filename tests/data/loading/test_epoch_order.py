"""Balanced and repeated samples are a function of (seed, epoch, position), and an epoch keeps its length."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distrain.config import Data
from distrain.config.batching import solve_batching
from distrain.data.loading.epoch_order import balanced_order, build_sampler, repeated_order, uniform_order
from distrain.data.loading.sampler import EpochOrder, Sampler, TrainSampler
from distrain.data.sources.base import DatasetSource, Source
from distrain.data.sources.class_counts import class_counts
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.errors import DataError

RARE = np.repeat(np.arange(4), [50, 3, 1, 20])


class Listed:
    """Blank images with the given labels, listed as in torchvision's datasets."""

    def __init__(self, labels: list[int], *, classes: int) -> None:
        self.classes = [f"class {n}" for n in range(classes)]
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (4, 4)), self._labels[index]


def balanced(labels: np.ndarray, epoch: int = 0, *, num_drawn: int | None = None, seed: int = 3) -> EpochOrder:
    num_classes = int(labels.max()) + 1
    return balanced_order(epoch, labels=labels, num_classes=num_classes, num_drawn=num_drawn, seed=seed)


@pytest.mark.parametrize("num_drawn", [None, 1, 3, 10, 75])
@pytest.mark.parametrize(
    "labels", [RARE, RARE[::-1], np.arange(300) % 7, np.arange(600) // 2, np.zeros(9, dtype=np.int64)]
)
def test_classes_are_equally_frequent_and_their_samples_take_turns(labels: np.ndarray, num_drawn: int | None) -> None:
    order = balanced(labels, num_drawn=num_drawn)
    assert order.copies is not None
    assert len(order.indices) == len(order.copies) == (num_drawn or len(labels))
    times = np.bincount(labels[order.indices], minlength=labels.max() + 1)
    assert times.max() - times.min() <= 1
    seen: Counter[int] = Counter()
    for index, copy in zip(order.indices.tolist(), order.copies.tolist(), strict=True):
        assert copy == seen[index]
        assert copy == min(seen[other] for other in np.flatnonzero(labels == labels[index]).tolist())
        seen[index] += 1


def test_balanced_order_never_changes_with_a_version() -> None:
    order = balanced(np.array([0, 0, 0, 0, 0, 0, 1, 1, 2]), seed=0)
    assert order.copies is not None
    assert (order.indices.tolist(), order.copies.tolist()) == (
        [3, 7, 5, 8, 6, 8, 7, 8, 2],
        [0, 0, 0, 0, 0, 1, 1, 2, 0],
    )


def test_balanced_orders_differ_by_epoch_and_seed_and_use_all_samples_without_a_bias() -> None:
    epochs = [balanced(RARE, epoch) for epoch in range(40)]
    others = [balanced(RARE, epoch, seed=4) for epoch in range(40)]
    assert len({tuple(order.indices.tolist()) for order in epochs + others}) == 80
    assert set(np.concatenate([order.indices for order in epochs]).tolist()) == set(range(len(RARE)))
    times = np.bincount(RARE[np.concatenate([order.indices for order in epochs])])
    assert times.max() / times.min() < 1.03  # who has one more, 19 and not 18 of 74, is drawn each time
    firsts = np.bincount([RARE[order.indices[0]] for order in epochs + others], minlength=4)
    assert firsts.min() > 8  # of 20 expected: where a class stands is drawn


@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_repeats_come_in_a_row_and_keep_the_length(repeats: int) -> None:
    drawn = -(-101 // repeats)
    once = uniform_order(1, num_samples=101, num_drawn=drawn, seed=3)
    order = repeated_order(
        1, sampler=partial(uniform_order, num_samples=101, num_drawn=drawn, seed=3), repeats=repeats, num_positions=101
    )
    assert order.copies is not None
    assert order.indices.tolist() == [index for index in once.indices.tolist() for _ in range(repeats)][:101]
    assert order.copies.tolist() == [copy for _ in range(drawn) for copy in range(repeats)][:101]


def sampler_of(source: Source, **changes: object) -> Sampler:
    return build_sampler(Data.model_validate({"source": "digits", "batch_size": 24, **changes}), source, seed=3)


def test_default_order_is_uniform() -> None:
    source = open_sources(Data(source="digits", batch_size=24))["train"]
    order = sampler_of(source)(2)
    assert order.copies is None
    assert np.array_equal(order.indices, uniform_order(2, num_samples=len(source), seed=3).indices)


def test_copies_of_a_repeated_rare_sample_are_all_distinct() -> None:
    order = sampler_of(DatasetSource(Listed(RARE.tolist(), classes=4), name="mine"), sampling="balanced", repeats=3)(0)
    assert order.copies is not None
    assert len(set(zip(order.indices.tolist(), order.copies.tolist(), strict=True))) == len(RARE)
    times = np.bincount(RARE[order.indices])
    assert times.max() - times.min() <= 3 + 2  # a sample's three times more, and the last sample's cut off


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_copies_come_with_their_samples_at_every_world_size_and_after_a_resume(world_size: int) -> None:
    source = DatasetSource(Listed(RARE.tolist(), classes=4), name="mine")
    sampler = sampler_of(source, sampling="balanced", repeats=2)
    orders = [
        TrainSampler(
            num_samples=74, sampler=sampler, batching=solve_batching(24, 6, world_size), drop_last=False, rank=rank
        )
        for rank in range(world_size)
    ]
    for step in (5, 2, 4):  # of epochs 1, 0 and 1
        epoch, start = step // 4, step % 4 * 24
        whole = sampler(epoch)
        assert whole.copies is not None
        batches = [batch for order in orders for batch in order.micro_batches([step])]
        found = [(batch.indices, batch.copies) for batch in batches if batch.copies is not None]
        assert np.array_equal(np.concatenate([indices for indices, _ in found]), whole.indices[start : start + 24])
        assert np.array_equal(np.concatenate([copies for _, copies in found]), whole.copies[start : start + 24])


def test_sources_count_their_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, number in {"ants": 3, "bees": 1, "cats": 2}.items():
            for image in range(number):
                file = tmp_path / split / name / f"{image}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4)).save(file)
    folder = Data(source="imagefolder", path=str(tmp_path), batch_size=1, train_samples=4)
    digits = Data(source="digits", batch_size=1, train_samples=50)
    for source in (
        open_sources(folder)["train"],
        choose_samples(open_sources(folder), folder, seed=1)["train"],
        choose_samples(open_sources(digits), digits, seed=1)["train"],
        DatasetSource(Listed([0, 2, 2], classes=4), name="mine"),
    ):
        counts = class_counts(source)
        assert counts.dtype == np.int64
        labels = [source.read(index)[1] for index in range(len(source))]
        assert counts.tolist() == [labels.count(label) for label in range(len(source.classes))]


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (Listed([0, 2], classes=3), "class 'class 1' has no training samples, so data.sampling=balanced cannot draw"),
        (Listed([0, 5], classes=2), "sample 1 of mine has label 5, outside 0 to 1"),
    ],
)
def test_error_names_labels_that_cannot_be_balanced(dataset: Listed, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        sampler_of(DatasetSource(dataset, name="mine"), sampling="balanced")
    assert str(caught.value).startswith(sentence)
