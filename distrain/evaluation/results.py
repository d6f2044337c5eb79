"""Writes the results of an evaluation, and reads the prediction for each sample."""

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import Findings, write_findings

NUM_MISTAKES = 25


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


def write_results(folder: RunDirectory, findings: Findings, predictions: Predictions) -> None:
    """Write both, the JSON last: where it exists, the results are complete. Pictures of older results are deleted."""
    for picture in (folder.confusion_image, folder.mistakes_image):
        picture.unlink(missing_ok=True)
    shutil.rmtree(folder.mistake_images, ignore_errors=True)
    np.savez_compressed(
        folder.answers,
        targets=predictions.targets,
        predictions=predictions.predictions,
        scores=predictions.scores,
        confusion=predictions.confusion,
    )
    write_findings(folder, findings)


def read_predictions(folder: RunDirectory) -> Predictions:
    """Read the prediction for every sample."""
    with np.load(folder.answers, allow_pickle=False) as arrays:
        return Predictions(arrays["targets"], arrays["predictions"], arrays["scores"], arrays["confusion"])
