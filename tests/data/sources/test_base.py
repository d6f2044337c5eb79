"""A source checks the target of each sample, whatever its kind."""

import os
import signal
from typing import Any

import pytest
import torch

from distrain.config.metrics import Target
from distrain.data.sources.base import DatasetSource, TensorSource, subset
from distrain.errors import DataError

IMAGES = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)


class Pictures:
    """A dataset of the user's with the given targets."""

    def __init__(self, targets: list[Any], target: str | None = None) -> None:
        self.classes = ["a", "b"]
        self.given = targets
        if target is not None:
            self.target = target

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        return IMAGES[0], self.given[index]


@pytest.mark.parametrize(
    ("target", "given", "expected"),
    [
        (None, [1, torch.tensor(0)], torch.tensor([1, 0])),
        ("class", [1.0, True], torch.tensor([1, 1])),
        ("labels", [[1, 0], torch.tensor([0, 1])], torch.tensor([[1.0, 0], [0, 1]])),
        ("values", [(0.5, -3), [7, 8]], torch.tensor([[0.5, -3], [7, 8]])),
    ],
)
def test_dataset_of_the_user_gives_targets_of_its_kind(target: str | None, given: list[Any], expected: Any) -> None:
    source = DatasetSource(Pictures(given, target), name="mine:pictures")
    assert source.target == (target or "class")
    assert torch.equal(source.targets, expected)
    assert source.targets.dtype == expected.dtype
    for index in range(2):
        found = source.read(index)[1]
        assert isinstance(found, int) == (expected.ndim == 1)
        assert torch.equal(torch.as_tensor(found), expected[index])
    assert torch.equal(subset(source, torch.tensor([1])).targets, expected[1:])


@pytest.mark.parametrize(
    ("target", "given", "words"),
    [
        (None, 2, "sample 1 of mine:pictures has label 2, outside 0 to 1, the numbers of its classes"),
        (None, -1, "has label -1, outside"),
        (None, "cat", "has label 'cat', which is not a number"),
        (None, 0.5, "has label 0.5; a class is one whole number"),
        (None, [0, 1], r"has label \[0, 1\]; a class is one whole number"),
        ("labels", [0, 2], r"has labels other than 0 and 1: \[0.0, 2.0\]"),
        ("labels", 1, r"has labels of shape \[\]; use 2 numbers"),
        ("labels", [1, 0, 0], r"has labels of shape \[3\]; use 2 numbers"),
        ("values", [0, float("inf")], r"has values that are not finite"),
    ],
)
def test_error_names_a_target_of_the_wrong_kind(target: str | None, given: Any, words: str) -> None:
    source = DatasetSource(Pictures([0, given], target), name="mine:pictures")
    with pytest.raises(DataError, match=words):
        source.read(1)


def test_dataset_of_another_form_is_refused() -> None:
    with pytest.raises(DataError, match="`target` is 'boxes'; use class, labels, values"):
        DatasetSource(Pictures([], "boxes"), name="mine:pictures")
    with pytest.raises(DataError, match="has no `classes`"):
        DatasetSource([], name="mine:pictures")
    for classes, words in ((None, "no `classes` at .*, in Pictures"), (2, "`classes` 2"), ("ab", "`classes` 'ab'")):
        pictures = Pictures([0], "values")
        pictures.classes = classes  # type: ignore[assignment]
        with pytest.raises(DataError, match=f"the dataset has {words}.*; give it `classes`, a list with a name for"):
            DatasetSource(pictures, name="mine:pictures")
    endless = type("Endless", (), {"classes": ["a"], "__getitem__": lambda self, index: (IMAGES[0], 0)})
    with pytest.raises(DataError, match="the dataset has no __len__"):
        DatasetSource(endless(), name="mine:endless")

    class Arrays(Pictures):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            return IMAGES[0].numpy(), 0

    with pytest.raises(
        DataError, match=r"sample 0 of mine:pictures is of type ndarray at .*, in __getitem__; return a tensor"
    ):
        DatasetSource(Arrays([0]), name="mine:pictures").read(0)


@pytest.mark.parametrize(
    ("target", "targets", "words"),
    [
        ("class", torch.tensor([0, 2]), "sample 1 has label 2, outside 0 to 1"),
        ("class", torch.tensor([[0], [1]]), r"sample 0 has label \[0\], outside"),
        ("labels", torch.tensor([[0.0, 1], [0, 0.5]]), "sample 1 has labels other than 0 and 1"),
        ("values", torch.tensor([[0.0], [1]]), r"has values of shape \[1\]; use 2 numbers"),
    ],
)
def test_targets_in_memory_are_checked_at_once(target: Target, targets: torch.Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        TensorSource(IMAGES, targets, ["a", "b"], target=target)


def test_fingerprint_changes_with_an_image_and_with_a_target() -> None:
    def digest(images: torch.Tensor, targets: list[int]) -> str:
        return TensorSource(images, torch.tensor(targets), ["a", "b"]).fingerprint()

    assert digest(IMAGES, [0, 1]) == digest(IMAGES.clone(), [0, 1])
    assert len({digest(IMAGES, [0, 1]), digest(IMAGES, [1, 0]), digest(IMAGES + 1, [0, 1])}) == 3


class Deadly:
    """A dataset without `targets` and with a sample that kills the process that reads it."""

    classes = ("a", "b")

    def __init__(self, deadly: int) -> None:
        self.deadly = deadly

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1, 2, 2, dtype=torch.uint8), index % 2


def test_error_names_a_sample_that_crashes_the_process_that_reads_targets() -> None:
    assert DatasetSource(Deadly(-1), name="mine:data").targets.tolist() == [0, 1] * 25
    words = r"^sample 41 of mine:data cannot be read \(reading it crashed the process: it was killed by SIGKILL\)"
    with pytest.raises(DataError, match=words):
        _ = DatasetSource(Deadly(41), name="mine:data").targets
