"""Reads and writes the results of an examination: metrics, results of each class, and a prediction for each sample."""

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
    """A sample that the network is most wrong about."""

    sample: str  # the image's path, or the words of its source
    index: int  # of the sample in its split
    target: str
    prediction: str
    # Probability of the wrong class; labels that are wrong; mean absolute error of the values, null if it is infinite.
    badness: Annotated[float, BeforeValidator(lambda read: math.inf if read is None else read)]


class ClassResult(BaseModel):
    """How one class fares, all fractions; precision is None where nothing was taken for the class."""

    name: str
    samples: int
    accuracy: float | None
    precision: float | None
    f1: float | None


class Findings(BaseModel):
    """An examination in numbers: `findings.json`."""

    run: str
    checkpoint: str
    step: int
    weights: str  # trained, or moving average
    split: Samples
    data: str | None
    target: Target
    num_samples: int
    metrics: Evaluation
    classes: list[ClassResult]  # none for values
    mistakes: list[Mistake]  # the worst first


@dataclass(frozen=True)
class Answers:
    """What the network said of each sample, in the order of the split.

    Of classes: `targets` and `predictions` int64 [n], `scores` float64 [n] the probability of the prediction. Of labels
    and values: `targets` and `predictions` float64 [n, outputs], `scores` float64 [n] how wrong they are. `confusion`
    is int64 [classes, classes], a row for a true class; empty where there are no classes.
    """

    targets: NDArray[Any]
    predictions: NDArray[Any]
    scores: NDArray[np.float64]
    confusion: NDArray[np.int64]


def badness_in_words(mistake: Mistake, target: Target) -> str:
    """Return how wrong a mistake is: `61.2%` of the probability, `4 labels wrong`, or by how much values are off."""
    if target == "class":
        return f"{mistake.badness:.1%}"
    if target == "labels":
        return f"{counted(round(mistake.badness), 'label')} wrong"
    return f"off by {mistake.badness:.4g}"


def write_findings(folder: RunDirectory, findings: Findings, answers: Answers) -> None:
    """Write both; the JSON last, so that whoever finds it finds all."""
    np.savez_compressed(
        folder.answers,
        targets=answers.targets,
        predictions=answers.predictions,
        scores=answers.scores,
        confusion=answers.confusion,
    )
    write_atomically(folder.findings, to_json(findings))


def read_findings(folder: RunDirectory) -> Findings:
    """Read an examination that is done."""
    return Findings.model_validate(json.loads(folder.findings.read_text(encoding="utf-8")))


def read_answers(folder: RunDirectory) -> Answers:
    """Read what was said of every sample."""
    with np.load(folder.answers, allow_pickle=False) as arrays:
        return Answers(arrays["targets"], arrays["predictions"], arrays["scores"], arrays["confusion"])


def results_of_classes(names: list[str], confusion: NDArray[np.int64]) -> list[ClassResult]:
    """Return how each class fares by the confusion matrix [classes, classes]."""
    right, samples, taken = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        ClassResult(
            name=name,
            samples=int(samples[i]),
            accuracy=_share(right[i], samples[i]),
            precision=_share(right[i], taken[i]),
            f1=_share(2 * right[i], samples[i] + taken[i]),
        )
        for i, name in enumerate(names)
    ]


def confused_pairs(names: list[str], confusion: NDArray[np.int64], most: int) -> list[tuple[str, str, int]]:
    """Return (true class, class that it was taken for, how often) of the pairs confused most often."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    request = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(request, wrong.shape)
    return [(names[r], names[c], int(wrong[r, c])) for r, c in zip(rows, columns, strict=True) if wrong[r, c]]


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
