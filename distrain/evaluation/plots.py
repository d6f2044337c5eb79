"""Plots an examination: the confusion matrix, and the samples that the network is most wrong about."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distrain.evaluation.results import Answers, Findings, badness_in_words
from distrain.messages import counted
from distrain.system.encoding import printable_name
from distrain.system.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NUMBERS = 25  # classes up to which each cell of the matrix has its number
MAX_NAMES = 60  # classes up to which the axes have their names
NUM_COLUMNS = 5


def draw_confusion(findings: Findings, answers: Answers, file: Path) -> None:
    """Draw the confusion matrix as a PNG: a row for a true class, coloured by its share, with the counts in it."""
    plot, axes = _figure(_side(len(findings.classes)), _side(len(findings.classes)))
    counts = answers.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_cut(result.name) for result in findings.classes]
    if len(names) <= MAX_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= MAX_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    accuracy = counts.trace() / max(counts.sum(), 1)
    # Beside the accuracy the run's name may be as long as it is: the picture becomes as wide as that.
    name = printable_name(Path(findings.run).name).replace("$", r"\$")
    plot.suptitle(f"{name}\nstep {findings.step:,}: {accuracy:.2%} of {counted(findings.num_samples, 'sample')}")
    _save(plot, file)


def draw_mistakes(findings: Findings, images: list[NDArray[Any] | None], file: Path) -> None:
    """Draw the worst mistakes as a PNG: each image uint8 [height, width, 3] with what it is and was taken for.

    None stands for an image that could not be read.
    """
    num_columns = min(len(images), NUM_COLUMNS)
    num_rows = -(-len(images) // num_columns)
    plot, _ = _figure(2.4 * num_columns, 2.9 * num_rows, axes=False)
    for place, (image, mistake) in enumerate(zip(images, findings.mistakes, strict=False), start=1):
        axes = plot.add_subplot(num_rows, num_columns, place)
        if image is not None:
            axes.imshow(image, interpolation="nearest" if max(image.shape) < 100 else None)
        axes.set_axis_off()
        badness = badness_in_words(mistake, findings.target)
        axes.set_title(f"is {_cut(mistake.target)}\nsaid {_cut(mistake.prediction)}\n({badness})", fontsize=8)
    _save(plot, file)


def _figure(width: float, height: float, *, axes: bool = True) -> tuple[Any, "Axes"]:
    """Return a figure, in inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(plot)
    return plot, plot.add_subplot() if axes else None  # type: ignore[return-value]


def _save(plot: Any, file: Path) -> None:
    with whole_file(file) as draft:
        plot.savefig(draft, dpi=110, bbox_inches="tight", pad_inches=0.1)  # as large as what is drawn


def _side(num_classes: int) -> float:
    return 3.0 + 0.35 * min(num_classes, 40)


def _cut(words: str) -> str:
    """Return the text as a title can show it: on one line, not too long, and not a formula."""
    words = printable_name(words)
    return (words if len(words) <= 28 else f"{words[:27]}…").replace("$", r"\$")
