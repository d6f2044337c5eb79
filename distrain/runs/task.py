"""Defines what a worker does in a run directory: `task.json`, written by the process that starts the worker."""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from distrain.runs.directory import RunDirectory
from distrain.runs.format import find_file
from distrain.system.files import read_whole, to_json, write_atomically

Samples = Literal["train", "val", "given", "all"]  # given: val, or all where the data has no splits
TaskName = Literal["train", "evaluate", "benchmark"]


class TrainRequest(BaseModel):
    """Train the run's recipe, starting from its newest checkpoint."""

    task: Literal["train"] = "train"


class EvaluationRequest(BaseModel):
    """Evaluate a checkpoint of another run, sample by sample."""

    task: Literal["evaluate"] = "evaluate"
    run: str  # the folder of the run that the checkpoint belongs to
    checkpoint: str
    split: Samples


class BenchmarkRequest(BaseModel):
    """Measure throughput, memory and the gradient reduction of a recipe's steps, and optionally more."""

    task: Literal["benchmark"] = "benchmark"
    steps: int | None = None  # of a timed section; None: as many as fit into `stretch_s`
    stretch_s: float = 5.0  # seconds of a timed section
    least_samples: int | None = None  # with fewer training samples, the planned epochs would have no step
    has_parts: bool = False  # also time the loader alone, computation alone, and the parts of a step
    has_checkpoint: bool = False
    has_evaluation: bool = False
    largest_micro_batch: int | None = None  # find its largest divisor that fits in memory; None: do not search


Task = TrainRequest | EvaluationRequest | BenchmarkRequest
_TASK: TypeAdapter[Task] = TypeAdapter(Annotated[Task, Field(discriminator="task")])


def write_task(run: RunDirectory, task: Task) -> None:
    """Write the task of the next worker in the run directory."""
    write_atomically(run.task, to_json(task))


def read_task(run: RunDirectory) -> Task:
    """Read the task of a worker; raises `RunError` for a damaged file.

    Earlier versions wrote no task for training, and only the request of an evaluation, under another name.
    """
    path = find_file(run.task)
    unnamed = {} if path == run.task else {"task": "evaluate"}
    return read_whole(path, lambda text: _TASK.validate_python(unnamed | json.loads(text))) or TrainRequest()


def saves_nothing(run: RunDirectory) -> bool:
    """Return whether the folder is for an evaluation or a benchmark, of which a stop keeps nothing."""
    return not isinstance(read_task(run), TrainRequest)
