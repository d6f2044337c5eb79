"""Defines what a logger is: opened with the run, given records, and closed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from distrain.config import Recipe
from distrain.runs.directory import RunDirectory
from distrain.training.input_samples import InputSamples

Record = dict[str, float]  # `step`, `epoch`, `time`, and the metrics of that step by name


@dataclass(frozen=True)
class Moment:
    """Where the training is right now, between two records, and the means over the epoch so far."""

    step: int  # steps taken
    phase: str = ""  # as in a heartbeat
    evaluated: int = 0  # batches of the evaluation in progress, of this rank
    to_evaluate: int = 0  # batches that it has
    epoch_loss: float | None = None  # over the samples; None where no step of the epoch was taken, or is known
    epoch_samples_per_s: float | None = None  # in training steps alone, of this attempt


@dataclass(frozen=True)
class LoggerContext:
    """What loggers may want to know when a run starts or resumes."""

    run: RunDirectory
    recipe: Recipe
    first_step: int
    total_steps: int
    steps_per_epoch: int
    now: Callable[[], Moment]
    samples: InputSamples  # the first training inputs
    model: nn.Module | None  # a copy on the CPU in evaluation mode, which a logger may run; None where there is none
    shown_metrics: tuple[str, ...] = ()  # what a line of text reports of an evaluation, besides its loss
    history: list[Record] = field(default_factory=list)  # the records up to the first step


class MetricLogger(Protocol):
    """Writes records, in the order of their steps."""

    def write(self, record: Record) -> None:
        """Write the record of one step."""
        ...

    def close(self) -> None:
        """Bring to disk, or to the network, what is left."""
        ...
