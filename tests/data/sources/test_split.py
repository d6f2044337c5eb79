"""A validation split is drawn by class, the same one for a seed, and no sample is in both splits."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from distrain.config import Data
from distrain.data.sources.base import Source, TensorSource
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.data.sources.split import split_off
from distrain.errors import DataError
from tests.data.writing import write


def source(*counts: int) -> TensorSource:
    """Return as many samples of each class, mixed, each with its number as its pixel."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return TensorSource(images, labels, [str(label) for label in range(len(counts))])


def numbers(part: Source) -> list[int]:
    return [int(part.read(index)[0]) for index in range(len(part))]


@pytest.mark.parametrize(
    ("fraction", "counts", "expected"),
    [
        (0.2, (10, 50, 3, 1), {0: 2, 1: 10, 2: 1}),
        (0.25, (6, 7, 8), {0: 2, 1: 2, 2: 2}),
        (0.9, (10, 2, 1), {0: 9, 1: 1}),  # each class keeps one to train on
    ],
)
def test_number_of_samples_of_each_class_is_rounded_to_the_nearest(
    fraction: float, counts: tuple[int, ...], expected: dict[int, int]
) -> None:
    whole = source(*counts)
    parts = split_off(whole, fraction, seed=3)
    assert Counter(parts["val"].targets.tolist()) == expected
    assert sorted(numbers(parts["train"]) + numbers(parts["val"])) == list(range(len(whole)))
    assert numbers(parts["train"]) == sorted(numbers(parts["train"]))
    assert list(parts["val"].classes) == list(whole.classes)


def test_split_depends_on_the_seed_and_on_a_class_alone() -> None:
    def val_of_first_class(seed: int, *counts: int) -> list[int]:
        labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
        images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
        val = split_off(TensorSource(images, labels, ["a", "b"]), 0.2, seed=seed)["val"]
        return [number for number in numbers(val) if number < counts[0]]

    first = val_of_first_class(0, 30, 30)
    assert first == val_of_first_class(0, 30, 30) == val_of_first_class(0, 30, 40)
    assert first != val_of_first_class(1, 30, 30)


def test_split_replaces_val_of_a_folder_and_is_reduced_afterwards(tmp_path: Path) -> None:
    for name in ("ants", "bees"):
        for number in range(10):
            write(tmp_path / "train" / name / f"{number}.png")
        write(tmp_path / "test" / name / "x.png")
    config = Data(source="imagefolder", path=str(tmp_path), batch_size=1, val_fraction=0.3, val_samples=4)
    chosen = choose_samples(open_sources(config), config, seed=0)
    assert (len(chosen["train"]), len(chosen["val"])) == (14, 4)
    assert all("/train/" in chosen["val"].describe(index) for index in range(4))
    paths = {part: {chosen[part].describe(i) for i in range(len(chosen[part]))} for part in chosen}
    assert not paths["train"] & paths["val"]


def test_labels_and_values_are_drawn_from_all_samples() -> None:
    images, targets = torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.rand(20, 2)
    parts = split_off(TensorSource(images, targets, ["a", "b"], target="values"), 0.25, seed=0)
    assert (len(parts["train"]), len(parts["val"])) == (15, 5)
    assert parts["val"].targets.shape == (5, 2)


def test_split_without_validation_samples_is_refused() -> None:
    with pytest.raises(DataError, match=r"data.val_fraction=0.1 of 4 training samples leaves none"):
        split_off(source(2, 2), 0.1, seed=0)
    with pytest.raises(DataError, match="digits has no validation samples"):
        choose_samples({"train": source(2)}, Data(source="digits", batch_size=1), seed=0)
