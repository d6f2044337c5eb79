"""Says what a worker does in a run directory: `task.json`, written by whoever starts the worker, and read by it."""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from distrain.runs.directory import RunDirectory, write_atomically
from distrain.runs.format import find_file
from distrain.system.files import read_whole, to_json

Samples = Literal["train", "val", "given", "all"]  # given: val, or all where the data has no splits
TaskName = Literal["train", "evaluate", "benchmark"]


class TrainRequest(BaseModel):
    """Train the run's recipe, from its newest checkpoint on."""

    task: Literal["train"] = "train"


class EvaluationRequest(BaseModel):
    """Evaluate a checkpoint of another run, sample by sample."""

    task: Literal["evaluate"] = "evaluate"
    run: str  # the folder of the run that the checkpoint is of
    checkpoint: str
    split: Samples


class BenchmarkRequest(BaseModel):
    """Measure throughput, memory and the reduction of a recipe's steps, and what else is asked for."""

    task: Literal["benchmark"] = "benchmark"
    steps: int | None = None  # of a stretch; None takes as many as fit into `stretch_s`
    stretch_s: float = 5.0
    least_samples: int | None = None  # fewer training samples give the epochs that are planned no step
    has_parts: bool = False  # loader alone, compute alone, the parts of a step
    has_checkpoint: bool = False
    has_evaluation: bool = False
    largest_micro_batch: int | None = None  # find the largest divisor of it that memory holds; None: do not look


Task = TrainRequest | EvaluationRequest | BenchmarkRequest
_TASK: TypeAdapter[Task] = TypeAdapter(Annotated[Task, Field(discriminator="task")])


def write_task(run: RunDirectory, task: Task) -> None:
    """Write what the next worker in the run directory does."""
    write_atomically(run.task, to_json(task))


def read_task(run: RunDirectory) -> Task:
    """Read what a worker does here; raises `RunError` for a damaged file.

    Earlier versions wrote no task for a training, and of an evaluation the request alone, under another name.
    """
    path = find_file(run.task)
    unnamed = {} if path == run.task else {"task": "evaluate"}
    return read_whole(path, lambda text: _TASK.validate_python(unnamed | json.loads(text))) or TrainRequest()


def saves_nothing(run: RunDirectory) -> bool:
    """Return whether the folder is for an evaluation or a benchmark: a stop costs all of it, whenever it comes."""
    return not isinstance(read_task(run), TrainRequest)
