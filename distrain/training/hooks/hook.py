"""Defines what a hook is, and what it sees: frozen dataclasses of numbers. This module needs no torch.

Hooks run on rank 0, in the thread of the training, between two steps. They get no weights, no gradients and no batches;
the generators that the network draws from are seeded again for each micro-batch, so that what a hook draws changes
nothing. Code that is to change the training is a task.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class TrainingStart:
    """An attempt begins: the first one of a run, a resume, or training again from a checkpoint after a rollback."""

    run: Path  # the run directory
    step: int  # steps taken before
    total_steps: int
    steps_per_epoch: int
    world_size: int


@dataclass(frozen=True)
class StepEnd:
    """A step of the optimizer has been taken. Its loss is on the device; the mean is in the next record."""

    step: int  # steps taken
    epoch: float
    lr: float


@dataclass(frozen=True)
class RecordWritten:
    """A line was written to `metrics.jsonl`."""

    step: int
    epoch: float
    metrics: Mapping[str, float]  # as in `metrics.jsonl`, such as train/loss and val/top1; read only


@dataclass(frozen=True)
class EvaluationEnd:
    """The validation samples were evaluated."""

    step: int
    epoch: float
    metrics: Mapping[str, float]  # val/NAME; read only
    is_best: bool  # whether it is the best one so far


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is on disk, whole and verified by its manifest."""

    step: int
    path: Path


@dataclass(frozen=True)
class TrainingStop:
    """Training has stopped as requested, with a checkpoint of its last step; the run can be resumed."""

    step: int
    reason: str  # who requested it: stopped, cancelled, preempted


@dataclass(frozen=True)
class TrainingEnd:
    """The training of this process has ended."""

    step: int
    state: Literal["finished", "stopped", "failed"]


class Hook:
    """Sees what happens in a training; a subclass overrides what it needs.

    A recipe names it, with the arguments of its constructor: `hooks: [mine:Watch: {every: 10}]`. An error that it
    raises is reported once, and the hook gets no more calls; the training continues.

    >>> class PrintEvaluations(Hook):
    ...     def on_evaluation(self, event: EvaluationEnd) -> None:
    ...         print(f"step {event.step}: {event.metrics['val/top1']:.2%}")
    >>> PrintEvaluations().on_evaluation(EvaluationEnd(23, 1.0, {"val/top1": 0.5}, is_best=True))
    step 23: 50.00%
    """

    def on_start(self, event: TrainingStart) -> None:
        """See the begin of an attempt."""

    def on_step_end(self, event: StepEnd) -> None:
        """See the end of a step."""

    def on_record(self, event: RecordWritten) -> None:
        """See the metrics of a record."""

    def on_evaluation(self, event: EvaluationEnd) -> None:
        """See the result of an evaluation."""

    def on_checkpoint(self, event: CheckpointSaved) -> None:
        """See a checkpoint, at the first record or checkpoint after it was written, and before the end."""

    def on_stop(self, event: TrainingStop) -> None:
        """See that training has stopped as requested."""

    def on_end(self, event: TrainingEnd) -> None:
        """See the end of the training; not if its process was killed."""
