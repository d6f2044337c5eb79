"""Plots the results of an evaluation: the confusion matrix, and the worst mistakes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distrain.evaluation.results import Predictions
from distrain.messages import counted
from distrain.runs.evaluations import Findings, format_badness
from distrain.system.encoding import printable_name
from distrain.system.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NUMBERS = 25  # the largest number of classes for which the cells of the matrix have numbers
MAX_NAMES = 60  # the largest number of classes for which the axes have names
NUM_COLUMNS = 5


def draw_confusion(findings: Findings, predictions: Predictions, file: Path) -> None:
    """Draw the confusion matrix as a PNG: a row per true class, coloured by shares of the row, with counts."""
    plot, axes = _figure(_side(len(findings.classes)), _side(len(findings.classes)))
    counts = predictions.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_shorten(result.name) for result in findings.classes]
    if len(names) <= MAX_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= MAX_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    accuracy = counts.trace() / max(counts.sum(), 1)
    # The run's name may be long: the image becomes as wide as the title.
    name = printable_name(Path(findings.run).name).replace("$", r"\$")
    plot.suptitle(f"{name}\nstep {findings.step:,}: {accuracy:.2%} of {counted(findings.num_samples, 'sample')}")
    _save(plot, file)


def draw_mistakes(findings: Findings, images: list[NDArray[Any] | None], file: Path) -> None:
    """Draw the worst mistakes as a PNG: each image uint8 [height, width, 3] with its true and its predicted target.

    None represents an image that could not be read.
    """
    num_columns = min(len(images), NUM_COLUMNS)
    num_rows = -(-len(images) // num_columns)
    plot, _ = _figure(2.4 * num_columns, 2.9 * num_rows, axes=False)
    for position, (image, mistake) in enumerate(zip(images, findings.mistakes, strict=False), start=1):
        axes = plot.add_subplot(num_rows, num_columns, position)
        if image is not None:
            axes.imshow(image, interpolation="nearest" if max(image.shape) < 100 else None)
        axes.set_axis_off()
        badness = format_badness(mistake, findings.target)
        axes.set_title(
            f"true {_shorten(mistake.target)}\npredicted {_shorten(mistake.prediction)}\n({badness})", fontsize=8
        )
    _save(plot, file)


def _figure(width: float, height: float, *, axes: bool = True) -> tuple[Any, "Axes"]:
    """Return a figure of this size in inches, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(plot)
    return plot, plot.add_subplot() if axes else None  # type: ignore[return-value]


def _save(plot: Any, file: Path) -> None:
    with whole_file(file) as draft:
        plot.savefig(draft, dpi=110, bbox_inches="tight", pad_inches=0.1)  # fits the content


def _side(num_classes: int) -> float:
    return 3.0 + 0.35 * min(num_classes, 40)


def _shorten(text: str) -> str:
    """Return the text for a title: on one line, not too long, and not read as a formula."""
    text = printable_name(text)
    return (text if len(text) <= 28 else f"{text[:27]}…").replace("$", r"\$")
