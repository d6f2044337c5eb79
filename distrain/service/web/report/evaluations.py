"""Turns the results of `distrain eval` into what a report shows: classes, confusion matrix, worst mistakes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distrain.config.metrics import format_evaluation
from distrain.evaluation.results import (
    EvaluationResults,
    Predictions,
    confused_pairs,
    format_badness,
    read_predictions,
    read_results,
)
from distrain.messages import counted
from distrain.runs.directory import RunDirectory
from distrain.service.web.report.pictures import as_data_uri, read_picture

MAX_EVALUATIONS = 3  # the newest ones
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
    """A sample with its wrong prediction; `picture` is a data URI, empty where there is none."""

    sample: str
    target: str
    prediction: str
    badness: str
    picture: str


@dataclass(frozen=True, kw_only=True)
class EvaluationView:
    """The results of one evaluation."""

    title: str
    metrics: str
    names: Sequence[str]  # of the classes
    cells: Sequence[Sequence[Cell]]  # a row for each true class; empty where there are too many
    matrix: str  # the same as a picture, then
    matrix_side: int
    pairs: Sequence[tuple[str, str, int]]  # true class, predicted class, count: the most confused ones
    classes: Sequence[Sequence[str]]  # name, samples, accuracy, precision, F1
    left_out: int  # classes that are not in the table
    mistakes: Sequence[MistakeView]
    mistakes_sheet: str  # one picture of all mistakes; empty where they have their own, or there is none


def show_evaluations(run: RunDirectory) -> list[EvaluationView]:
    """Return the newest evaluations of a run that are complete and can be read, the newest first."""
    found = []
    folders = [RunDirectory(path) for path in run.evaluations.glob("*") if RunDirectory(path).findings.is_file()]
    for folder in sorted(folders, key=lambda folder: -folder.findings.stat().st_mtime)[:MAX_EVALUATIONS]:
        try:
            found.append(_show(folder, read_results(folder), read_predictions(folder)))
        except (OSError, ValueError, KeyError):  # damaged
            continue
    return found


def _show(folder: RunDirectory, results: EvaluationResults, predictions: Predictions) -> EvaluationView:
    names = [result.name for result in results.classes]
    confusion = predictions.confusion if len(predictions.confusion) == len(names) else np.zeros((0, 0), np.int64)
    is_table = 0 < len(confusion) <= MAX_CELLS
    rows = sorted(results.classes, key=lambda row: (row.accuracy is None, row.accuracy))
    shown = rows[:MAX_CLASSES] if len(rows) > MAX_CLASSES else results.classes
    weights = "the moving average of the weights" if results.weights == "moving average" else "the trained weights"
    data = "" if results.data is None else f" of {results.data}"
    samples = {"train": "training", "val": "validation"}.get(results.split, "")
    return EvaluationView(
        title=f"{counted(results.num_samples, f'{samples} sample'.strip())}{data}, {weights} of step {results.step:,}",
        metrics=format_evaluation(results.metrics, split="" if results.split == "all" else results.split),
        names=names,
        cells=_show_cells(confusion) if is_table else [],
        matrix="" if is_table or not len(confusion) else _draw_matrix(confusion),
        matrix_side=max(_PIXELS, len(confusion)),
        pairs=confused_pairs(names, confusion, MAX_PAIRS) if len(confusion) else [],
        classes=[
            [row.name, f"{row.samples:,}", *(_share(value) for value in (row.accuracy, row.precision, row.f1))]
            for row in shown
        ],
        left_out=len(results.classes) - len(shown),
        mistakes=[
            MistakeView(each.sample, each.target, each.prediction, format_badness(each, results.target), "")
            for each in results.mistakes
        ],
        mistakes_sheet=read_picture(folder.path / "mistakes.png") if results.mistakes else "",
    )


def _show_cells(confusion: NDArray[np.int64]) -> list[list[Cell]]:
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
