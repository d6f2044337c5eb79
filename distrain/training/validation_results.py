"""Writes the results per class of the training's own evaluations: the newest and the best one."""

import logging
import shutil

import numpy as np
from numpy.typing import NDArray

from distrain.runs.confusion import results_of_classes
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import Findings, validation_folder, write_findings
from distrain.training.evaluate import Evaluation
from distrain.training.session import Session

log = logging.getLogger(__name__)


def write_validation(session: Session, step: int, evaluation: Evaluation) -> None:
    """Write an evaluation of classes from rank 0, and delete those that are neither the newest nor the best.

    An error of the file system costs a warning.
    """
    if not session.world.is_rank_zero or evaluation.confusion is None or evaluation.confusion.dim() != 2:
        return
    run, best = session.run, session.state.best
    folder = validation_folder(run, step)
    kept = {folder.path, *([] if best is None else [validation_folder(run, int(best["step"])).path])}
    try:
        _write(folder, session, step, evaluation, evaluation.confusion.numpy())
        for other in set(run.validation.iterdir()) - kept:
            shutil.rmtree(other)
    except OSError as error:
        log.warning("the confusion matrix of step %d is not in %s: %s", step, run.validation, error.strerror)


def _write(
    folder: RunDirectory, session: Session, step: int, evaluation: Evaluation, confusion: NDArray[np.int64]
) -> None:
    """Write the files of an evaluation, the findings last: where they exist, the results are complete."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.findings.unlink(missing_ok=True)
    np.savez_compressed(folder.answers, confusion=confusion.astype(np.min_scalar_type(confusion.max())))
    findings = Findings(
        run=str(session.run.path),
        checkpoint="",
        step=step,
        weights="trained" if session.average is None or not session.average.is_active else "moving average",
        split="val",
        data=session.recipe.data.path,
        target=session.train_reader.source.target,
        num_samples=evaluation.num_samples,
        metrics=evaluation.metrics,
        classes=results_of_classes([str(name) for name in session.metrics.classes], confusion),
        mistakes=[],
    )
    write_findings(folder, findings)
