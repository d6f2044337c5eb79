"""Reads confusion matrices, and computes the results of each class from one."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distrain.runs.evaluations import ClassResult
from distrain.system.files import open_regular

_HEADER_BYTES = 1024  # at most, of an array
# What reading a damaged file raises, or one that is in another format of numpy's.
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often each class is predicted as each: `counts` int64 [classes, classes], a row for each true class."""

    classes: tuple[str, ...]
    counts: NDArray[np.int64]


def read_confusion(file: Path, classes: list[str]) -> ConfusionMatrix | None:
    """Return the confusion matrix in an `answers.npz`; None where there is none of these classes, or it is damaged."""
    try:
        # Not by its path: numpy would leave a damaged file open.
        with open_regular(file) as content, np.load(content, allow_pickle=False) as arrays:
            if arrays.zip.getinfo("confusion.npy").file_size > 8 * len(classes) ** 2 + _HEADER_BYTES:
                return None  # compressed, it could be a thousand times smaller than in memory
            counts = arrays["confusion"]
    except _DAMAGED:
        return None
    if counts.shape != (len(classes), len(classes)) or not np.issubdtype(counts.dtype, np.integer):
        return None
    return ConfusionMatrix(tuple(classes), counts.astype(np.int64))


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
