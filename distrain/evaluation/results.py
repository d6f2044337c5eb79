"""Reads and writes the results of an evaluation: metrics, results per class, and a prediction for each sample."""

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator

from distrain.config.metrics import Evaluation, Target
from distrain.messages import counted
from distrain.runs.directory import RunDirectory, write_atomically
from distrain.runs.task import Samples
from distrain.system.files import to_json

NUM_MISTAKES = 25


class Mistake(BaseModel):
    """A sample with one of the worst predictions."""

    sample: str  # the image's path, or its name in the source
    index: int  # of the sample in its split
    target: str
    prediction: str
    # Probability of the wrong class; number of wrong labels; mean absolute error of the values, null if it is infinite.
    badness: Annotated[float, BeforeValidator(lambda read: math.inf if read is None else read)]


class ClassResult(BaseModel):
    """The results of one class, as fractions; precision is None where the class was never predicted."""

    name: str
    samples: int
    accuracy: float | None
    precision: float | None
    f1: float | None


class EvaluationResults(BaseModel):
    """The results of an evaluation: `findings.json`."""

    run: str
    checkpoint: str
    step: int
    weights: str  # trained, or moving average
    split: Samples
    data: str | None
    target: Target
    num_samples: int
    metrics: Evaluation
    classes: list[ClassResult]  # empty for values
    mistakes: list[Mistake]  # the worst first


@dataclass(frozen=True)
class Predictions:
    """The prediction for each sample, in the order of the split.

    For classes: `targets` and `predictions` int64 [n], `scores` float64 [n] the probability of the prediction. For
    labels and values: `targets` and `predictions` float64 [n, outputs], `scores` float64 [n] the error. `confusion` is
    int64 [classes, classes], a row per true class; empty where there are no classes.
    """

    targets: NDArray[Any]
    predictions: NDArray[Any]
    scores: NDArray[np.float64]
    confusion: NDArray[np.int64]


def format_badness(mistake: Mistake, target: Target) -> str:
    """Return how wrong a mistake is as text: a probability `61.2%`, `4 labels wrong`, or `off by 0.5`."""
    if target == "class":
        return f"{mistake.badness:.1%}"
    if target == "labels":
        return f"{counted(round(mistake.badness), 'label')} wrong"
    return f"off by {mistake.badness:.4g}"


def write_results(folder: RunDirectory, results: EvaluationResults, predictions: Predictions) -> None:
    """Write both, the JSON last: where it exists, the results are complete."""
    np.savez_compressed(
        folder.answers,
        targets=predictions.targets,
        predictions=predictions.predictions,
        scores=predictions.scores,
        confusion=predictions.confusion,
    )
    write_atomically(folder.findings, to_json(results))


def read_results(folder: RunDirectory) -> EvaluationResults:
    """Read the results of a finished evaluation."""
    return EvaluationResults.model_validate(json.loads(folder.findings.read_text(encoding="utf-8")))


def read_predictions(folder: RunDirectory) -> Predictions:
    """Read the prediction for every sample."""
    with np.load(folder.answers, allow_pickle=False) as arrays:
        return Predictions(arrays["targets"], arrays["predictions"], arrays["scores"], arrays["confusion"])


def results_of_classes(names: list[str], confusion: NDArray[np.int64]) -> list[ClassResult]:
    """Return the results of each class from the confusion matrix [classes, classes]."""
    correct, samples, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        ClassResult(
            name=name,
            samples=int(samples[i]),
            accuracy=_share(correct[i], samples[i]),
            precision=_share(correct[i], predicted[i]),
            f1=_share(2 * correct[i], samples[i] + predicted[i]),
        )
        for i, name in enumerate(names)
    ]


def confused_pairs(names: list[str], confusion: NDArray[np.int64], limit: int) -> list[tuple[str, str, int]]:
    """Return (true class, predicted class, count) of the `limit` pairs confused most often."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order, wrong.shape)
    return [(names[r], names[c], int(wrong[r, c])) for r, c in zip(rows, columns, strict=True) if wrong[r, c]]


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
