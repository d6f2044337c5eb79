"""Shows evaluations of a run: figures of each class, confusion matrix, worst mistakes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distrain.config.metrics import format_evaluation
from distrain.messages import counted
from distrain.runs.confusion import confused_pairs
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import (
    EvaluationResult,
    Mistake,
    format_badness,
    read_evaluations,
    read_validations,
)
from distrain.service.web.views.pictures import Address, as_data_uri, is_small

MAX_EVALUATIONS = 5  # the newest ones of `distrain eval`
MAX_CELLS = 30  # the largest number of classes for which the matrix is a table; of more it is a picture
MAX_CLASSES = 50  # rows of the table; of more classes, the least accurate are shown
MAX_PAIRS = 10
SHADES = 6  # steps of colour
_PIXELS = 600  # the least side of the picture of a matrix
_COLOUR = np.array([47, 85, 212])  # of a share of 1; white is 0


@dataclass(frozen=True)
class Cell:
    """A count in a confusion matrix, and its shade: 0 to `SHADES`, for its share of the samples of the true class."""

    count: int
    shade: int
    is_hit: bool


@dataclass(frozen=True)
class MistakeView:
    """A sample with its wrong prediction; `picture` is an address, empty where there is none."""

    sample: str
    target: str
    prediction: str
    badness: str
    picture: str
    is_small: bool  # so that each of its pixels is enlarged to a square


@dataclass(frozen=True, kw_only=True)
class EvaluationView:
    """The results of one evaluation."""

    name: str  # of its folder, below a run
    title: str
    metrics: str
    names: Sequence[str]  # of the classes
    cells: Sequence[Sequence[Cell]]  # a row for each true class; empty where there are too many
    matrix: str  # the same as a picture, then
    matrix_side: int
    pairs: Sequence[tuple[str, str, int]]  # true class, predicted class, count: the most confused ones
    classes: Sequence[Sequence[str]]  # name, samples, accuracy, precision, F1
    left_out: int  # classes that are not in the table
    has_mistakes: bool  # whether its mistakes are known: the training does not keep those of its own evaluations
    mistakes: Sequence[MistakeView]


def show_evaluations(run: RunDirectory, address: Address) -> list[EvaluationView]:
    """Return the newest results of `distrain eval`, then the training's own of other steps, each the newest first.

    `address` returns where a picture is, for `src`.
    """
    evaluations = read_evaluations(run)[:MAX_EVALUATIONS]
    known = {(result.step, result.split, result.num_samples) for result in evaluations}
    own = [result for result in read_validations(run) if (result.step, result.split, result.num_samples) not in known]
    return [_show(result, address, has_mistakes=True) for result in evaluations] + [
        _show(result, address, has_mistakes=False) for result in own
    ]


def _show(result: EvaluationResult, address: Address, *, has_mistakes: bool) -> EvaluationView:
    names = [each.name for each in result.classes]
    matrix = result.read_confusion()
    confusion = np.zeros((0, 0), np.int64) if matrix is None else matrix.counts
    is_table = 0 < len(confusion) <= MAX_CELLS
    rows = sorted(result.classes, key=lambda row: (row.accuracy is None, row.accuracy))
    shown = rows[:MAX_CLASSES] if len(rows) > MAX_CLASSES else result.classes
    return EvaluationView(
        name=result.name,
        title=_describe(result),
        metrics=format_evaluation(result.metrics, split="" if result.split == "all" else result.split),
        names=names,
        cells=show_cells(confusion) if is_table else [],
        matrix="" if is_table or not len(confusion) else _draw_matrix(confusion),
        matrix_side=max(_PIXELS, len(confusion)),
        pairs=confused_pairs(names, confusion, MAX_PAIRS) if len(confusion) else [],
        classes=[
            [row.name, f"{row.samples:,}", *(_share(value) for value in (row.accuracy, row.precision, row.f1))]
            for row in shown
        ],
        left_out=len(result.classes) - len(shown),
        has_mistakes=has_mistakes,
        mistakes=[_show_mistake(mistake, result, address) for mistake in result.mistakes],
    )


def _describe(result: EvaluationResult) -> str:
    samples = {"train": "training sample", "val": "validation sample"}.get(result.split, "sample")
    data = "" if result.data is None else f" of {result.data}"
    weights = "the moving average of the weights" if result.weights == "moving average" else "the trained weights"
    return f"{counted(result.num_samples, samples)}{data}, {weights} of step {result.step:,}"


def _show_mistake(mistake: Mistake, result: EvaluationResult, address: Address) -> MistakeView:
    picture = None if mistake.image is None else result.path / mistake.image
    return MistakeView(
        mistake.sample,
        mistake.target,
        mistake.prediction,
        format_badness(mistake, result.target),
        "" if picture is None else address(picture),
        picture is not None and is_small(picture),
    )


def show_cells(confusion: NDArray[np.int64]) -> list[list[Cell]]:
    """Return the cells of a confusion matrix [classes, classes]."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    shades = np.ceil(shares * SHADES).astype(int)
    return [
        [Cell(int(confusion[row, column]), int(shades[row, column]), row == column) for column in range(len(confusion))]
        for row in range(len(confusion))
    ]


def _draw_matrix(confusion: NDArray[np.int64]) -> str:
    """Return a picture with a pixel for each cell, or several, darker for a larger share of the true class."""
    from PIL import Image

    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    visible = np.sqrt(shares)[..., None]  # so that few confusions among many samples are seen
    pixels = (255 + visible * (_COLOUR - 255)).round().astype(np.uint8)
    factor = -(-_PIXELS // len(confusion))
    file = io.BytesIO()
    Image.fromarray(pixels).resize((factor * len(confusion),) * 2, Image.Resampling.NEAREST).save(file, "PNG")
    return as_data_uri(file.getvalue())


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
