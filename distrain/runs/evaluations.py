"""Reads evaluations of a run: metrics, results per class, worst mistakes, and the confusion matrix."""

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, BeforeValidator

from distrain.config.metrics import Evaluation, Target
from distrain.messages import counted
from distrain.runs.directory import RunDirectory
from distrain.runs.task import Samples
from distrain.system.files import read_readable, texts_of, to_json, write_atomically

if TYPE_CHECKING:
    from distrain.runs.confusion import ConfusionMatrix


class Mistake(BaseModel):
    """A sample with one of the worst predictions."""

    sample: str  # the image's path, or its name in the source
    index: int  # of the sample in its split
    target: str
    prediction: str
    # Probability of the wrong class; number of wrong labels; mean absolute error of the values, null if it is infinite.
    badness: Annotated[float, BeforeValidator(lambda read: math.inf if read is None else read)]
    image: str | None = None  # the file of its picture, relative to the folder of the evaluation


class ClassResult(BaseModel):
    """The results of one class, as fractions; precision is None where the class was never predicted."""

    name: str
    samples: int
    accuracy: float | None
    precision: float | None
    f1: float | None


class Findings(BaseModel):
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
class EvaluationResult:
    """A finished evaluation of a run, as its folder has it. Pictures are None where there are none."""

    name: str  # of its folder
    path: Path
    made: float  # when it ended, in seconds since the epoch
    checkpoint: str  # empty for an evaluation of the training itself
    step: int
    weights: str  # trained, or moving average
    split: Samples
    data: str | None
    target: Target
    num_samples: int
    metrics: dict[str, float]
    classes: tuple[ClassResult, ...]  # empty unless the targets are classes
    mistakes: tuple[Mistake, ...]  # the worst first; each `image` exists
    confusion_image: Path | None
    mistakes_image: Path | None

    def read_confusion(self) -> "ConfusionMatrix | None":
        """Read the confusion matrix; None where the targets are not classes, or the file is missing or damaged."""
        from distrain.runs.confusion import read_confusion

        if not self.classes:
            return None
        return read_confusion(RunDirectory(self.path).answers, [result.name for result in self.classes])


def read_evaluations(run: RunDirectory) -> list[EvaluationResult]:
    """Return the finished evaluations below a run, the newest first, without those that are damaged."""
    return _read_evaluations_in(run.evaluations)


def read_validations(run: RunDirectory) -> list[EvaluationResult]:
    """Return the newest and the best evaluation of the training itself, the newest first: one, if they are the same.

    They have neither mistakes nor images, and exist only where the targets are classes, and these are not too many.
    """
    return _read_evaluations_in(run.validation)


def read_evaluation(folder: RunDirectory) -> EvaluationResult | None:
    """Return the evaluation in a folder; None where it has not finished, or is damaged."""
    findings = read_findings(folder)
    with suppress(OSError):
        if findings is not None:
            return EvaluationResult(
                name=folder.path.name,
                path=folder.path,
                made=folder.findings.stat().st_mtime,
                checkpoint=findings.checkpoint,
                step=findings.step,
                weights=findings.weights,
                split=findings.split,
                data=findings.data,
                target=findings.target,
                num_samples=findings.num_samples,
                metrics=findings.metrics,
                classes=tuple(findings.classes),
                mistakes=tuple(_with_existing_image(mistake, folder) for mistake in findings.mistakes),
                confusion_image=folder.confusion_image if folder.confusion_image.is_file() else None,
                mistakes_image=folder.mistakes_image if folder.mistakes_image.is_file() else None,
            )
    return None


def validation_folder(run: RunDirectory, step: int) -> RunDirectory:
    """Return the folder of the training's own evaluation at a step."""
    return RunDirectory(run.validation / f"step-{step:08}")


def read_findings(folder: RunDirectory) -> Findings | None:
    """Return the findings in the folder of an evaluation; None where it has not finished, or they are damaged."""
    with suppress(OSError):
        for findings in read_readable(texts_of([folder.findings]), _parse):
            return findings
    return None


def write_findings(folder: RunDirectory, findings: Findings) -> None:
    """Write or replace the findings in the folder of an evaluation."""
    write_atomically(folder.findings, to_json(findings))


def format_badness(mistake: Mistake, target: Target) -> str:
    """Return how wrong a mistake is as text: a probability `61.2%`, `4 labels wrong`, or `off by 0.5`."""
    if target == "class":
        return f"{mistake.badness:.1%}"
    if target == "labels":
        return f"{counted(round(mistake.badness), 'label')} wrong"
    return f"off by {mistake.badness:.4g}"


def _read_evaluations_in(path: Path) -> list[EvaluationResult]:
    try:
        folders = sorted(path.iterdir())
    except OSError:
        return []
    found = [result for folder in folders if (result := read_evaluation(RunDirectory(folder))) is not None]
    return sorted(found, key=lambda result: result.made, reverse=True)


def _parse(text: str) -> Findings:
    return Findings.model_validate(json.loads(text))  # not by pydantic: names may have bytes that are not UTF-8


def _with_existing_image(mistake: Mistake, folder: RunDirectory) -> Mistake:
    """Return the mistake without an image that does not exist, or is not among the evaluation's own pictures."""
    if mistake.image is None:
        return mistake
    image = folder.mistake_images / Path(mistake.image).name
    is_own = mistake.image == str(image.relative_to(folder.path)) and image.is_file()
    return mistake if is_own else mistake.model_copy(update={"image": None})
