"""Defines the JSON files of a run: its status and attempts, its job, and the heartbeat of each rank."""

import os
import socket
import time
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field, computed_field, field_validator, model_validator

from distrain.config.metrics import Evaluation
from distrain.runs.format import FORMAT_VERSION

State = Literal["queued", "starting", "running", "stopping", "stopped", "preempted", "cancelled", "failed", "finished"]

Count: TypeAlias = Annotated[int, Field(ge=0, le=2**53)]
Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Moment: TypeAlias = Annotated[float, Field(ge=0, le=2**37)]  # in seconds since the epoch, up to the year 6325
AttemptMark: TypeAlias = tuple[int, float | None]  # the number of attempts, and the time when the newest one ended


class Change(BaseModel):
    """What a value of the recipe was, and what it is now."""

    old: Any
    new: Any


Changes: TypeAlias = dict[str, Change]  # by dotted key


class Attempt(BaseModel):
    """One start of the run, from the step it began at to the step it ended at."""

    started: Moment  # seconds since the epoch, like every time in this file
    host: str
    pid: int
    world_size: int
    first_step: int
    last_step: int
    state: State
    ended: Moment | None = None
    changes: Changes = {}  # of the recipe, since the attempt before: they hold from `first_step` on


class SkippedBatch(BaseModel):
    """A batch that is skipped, because a value in its step was not finite."""

    step: int  # the number of its step, counted from 1
    cause: str  # the value that was not finite
    samples: list[int] = []  # indices of the samples that may be the cause
    bad_samples: list[int] = []  # those that are known to be the cause: later batches with one are skipped, too


class Status(BaseModel):
    """The progress of a run: `status.json`, replaced atomically by rank 0 and read by anyone."""

    format_version: int = FORMAT_VERSION  # of the run directory
    state: State = "queued"
    step: Count = 0
    total_steps: Count = 0
    steps_per_epoch: Count = 0  # 0 before the first attempt, and in earlier versions
    epoch: Finite = 0.0  # epochs finished, including the fraction of the current one
    eta_s: float | None = None
    heartbeat: float = 0.0
    best: Evaluation | None = None  # step and metrics of the best evaluation
    best_by: str = "top1"  # the metric that decides which evaluation is best
    last: Evaluation | None = None  # step and metrics of the newest evaluation
    own_metrics: dict[
        str, bool | None
    ] = {}  # those that are not distrain's: whether higher is better, if that is known
    train_seconds: Finite = 0.0  # spent in this run over all attempts, without start-up
    weights_digest: str | None = None  # of the weights and buffers at the end
    state_digest: str | None = None  # of these, the optimizer's state and the moving averages
    skipped_batches: list[SkippedBatch] = []
    unsaved_state: list[str] = []  # state of network and loss that changes in training and is in no checkpoint
    diagnosis: list[str] = []  # in the newest attempt: which ranks hold up the others, and what to look at
    attempts: list[Attempt] = []
    changes: Changes = {}  # of the recipe since the newest attempt: the next one has them

    @field_validator("best", "last")
    @classmethod
    def _step_is_whole(cls, evaluation: dict[str, float] | None) -> dict[str, float] | None:
        return evaluation and {name: int(value) if name == "step" else value for name, value in evaluation.items()}

    @computed_field  # type: ignore[prop-decorator]  # mypy does not support decorated properties
    @property
    def rollbacks(self) -> int:
        """How many times training was rolled back to a checkpoint, over all attempts: once for each skipped batch."""
        return len(self.skipped_batches)

    @model_validator(mode="before")
    @classmethod
    def _read_skipped_steps(cls, data: Any) -> Any:
        """Read the skipped steps of runs of earlier versions, which counted steps from 0."""
        if isinstance(data, dict) and "skipped_steps" in data and "skipped_batches" not in data:
            steps = data["skipped_steps"]
            return {**data, "skipped_batches": [{"step": step + 1, "cause": "the loss"} for step in steps]}
        return data

    @property
    def mark(self) -> AttemptMark:
        """What identifies the newest attempt without comparing clocks, which may differ between nodes."""
        return len(self.attempts), self.attempts[-1].ended if self.attempts else None

    def lifts(self, ending: str, step: int) -> bool:
        """Whether the limit `train.ENDING` that ended the run at a step was changed there, to train further."""
        changed = [self.changes, *(attempt.changes for attempt in self.attempts if attempt.first_step >= step)]
        return any(f"train.{ending}" in changes for changes in changed)

    def close(self, state: State) -> None:
        """End the run in `state`, and its open attempt, if there is one, whose process can no longer do so."""
        self.state = state
        self.close_attempt(state)

    def begin_attempt(self, *, world_size: int, first_step: int) -> None:
        """Begin an attempt of this process; an attempt that is still open has failed, because its rank 0 was killed."""
        self.close_attempt("failed")
        self.state, self.diagnosis = "starting", []
        self.attempts.append(
            Attempt(
                started=time.time(),
                host=socket.gethostname(),
                pid=os.getpid(),
                world_size=world_size,
                first_step=first_step,
                last_step=first_step,
                state="starting",
                changes=self.changes,
            )
        )
        self.changes = {}

    def close_attempt(self, state: State) -> None:
        """End the open attempt, if there is one, at the time of its last heartbeat."""
        if self.attempts and self.attempts[-1].ended is None:
            self.attempts[-1].state, self.attempts[-1].ended = state, self.heartbeat or time.time()


class Job(BaseModel):
    """The SLURM job that trains a run, and the call of sbatch that submitted it: `job.json`."""

    id: str = ""  # SLURM's job id; a task of an array has 123_4
    argv: list[str] = []  # empty for a job that was submitted by hand
    env: dict[str, str] = {}
    cwd: str = ""


class Heartbeat(BaseModel):
    """The progress of one rank: `heartbeats/rank-R.json`, written once a second by that rank."""

    rank: int
    host: str
    pid: int
    time: float
    step: int  # steps taken
    phase: str
    progress: int
    figures: dict[str, float] = {}  # of the rank, its GPUs and its node: `distrain.training.machine`
    threads: dict[str, str] = {}  # the stacks of all threads by name, while `stacks-request` exists
