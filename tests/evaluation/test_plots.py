"""The plots of an evaluation show their whole titles, without unnecessary margins."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from distrain.evaluation.plots import draw_confusion, draw_mistakes
from distrain.evaluation.results import Predictions
from distrain.runs.confusion import results_of_classes
from distrain.runs.evaluations import Findings, Mistake, format_badness

EMPTY = np.zeros(1)


def findings(num_classes: int, *, num_mistakes: int = 0) -> tuple[Findings, Predictions]:
    confusion = np.eye(num_classes, dtype=np.int64) * 60 + 4
    mistakes = [
        Mistake(sample="s", index=i, target="W" * 40, prediction="M" * 40, badness=0.9) for i in range(num_mistakes)
    ]
    found = Findings(
        run="/runs/imagefolder-resnet18-20261126-052803-f681",
        checkpoint="",
        step=1234567,
        weights="trained",
        split="val",
        data=None,
        target="class",
        num_samples=int(confusion.sum()),
        metrics={},
        classes=results_of_classes([f"class {i}" for i in range(num_classes)], confusion),
        mistakes=mistakes,
    )
    return found, Predictions(EMPTY, EMPTY, EMPTY, confusion)


def ink(file: Path) -> NDArray[np.bool_]:
    """Return which of the pixels [height, width] are not white."""
    return np.asarray(Image.open(file).convert("L")) < 200


def assert_framed(drawn: NDArray[np.bool_]) -> None:
    """Fail unless there is exactly a narrow white margin around the content: nothing is cut off."""
    for margin in (drawn, drawn[::-1], drawn.T, drawn.T[::-1]):
        first = int(np.argmax(margin.any(axis=1)))
        assert 3 <= first <= 25, first


@pytest.mark.parametrize("num_classes", [2, 10, 70])
def test_title_of_the_confusion_matrix_is_complete_for_few_classes(tmp_path: Path, num_classes: int) -> None:
    draw_confusion(*findings(num_classes), tmp_path / "confusion.png")
    drawn = ink(tmp_path / "confusion.png")
    assert_framed(drawn)
    title = drawn[: drawn.shape[0] // 12 if num_classes > 2 else 50]
    assert title.any(axis=1).sum() >= 15  # two lines of letters: the name, and the accuracy


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (7, 5)])
def test_mistakes_have_no_empty_columns(tmp_path: Path, count: int, columns: int) -> None:
    found, _ = findings(2, num_mistakes=count)
    images: list[NDArray[Any] | None] = [np.zeros((64, 64, 3), dtype=np.uint8)] * count
    draw_mistakes(found, images, tmp_path / "mistakes.png")
    drawn = ink(tmp_path / "mistakes.png")
    assert_framed(drawn)
    row = drawn[: 3 * 110]
    filled = row.mean(axis=0) > 0.5  # columns of pixels within an image
    assert np.diff(filled.astype(int), prepend=0).clip(min=0).sum() == columns


def test_badness_says_what_it_counts() -> None:
    mistake = Mistake(sample="s", index=0, target="a", prediction="b", badness=4)
    assert format_badness(mistake.model_copy(update={"badness": 0.612}), "class") == "61.2%"
    assert format_badness(mistake, "labels") == "4 labels wrong"
    assert format_badness(mistake.model_copy(update={"badness": 1}), "labels") == "1 label wrong"
    assert format_badness(mistake, "values") == "off by 4"
