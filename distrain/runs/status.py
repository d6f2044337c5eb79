"""Defines what the files of a run say of it: its status and attempts, its job, and the heartbeat of each rank."""

import os
import socket
import time
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, computed_field, field_validator, model_validator

from distrain.runs.format import FORMAT_VERSION

State = Literal["queued", "starting", "running", "stopping", "stopped", "preempted", "failed", "finished"]

AttemptMark: TypeAlias = tuple[int, float | None]  # how many attempts there are, and when the newest one has ended


class Attempt(BaseModel):
    """One start of the run, from the step it began at to the step it ended at."""

    started: float  # seconds since the epoch, like every time in this file
    host: str
    pid: int
    world_size: int
    first_step: int
    last_step: int
    state: State
    ended: float | None = None


class SkippedBatch(BaseModel):
    """A batch that is left out, since something that its step made was not finite."""

    step: int  # the number of its step, counted from 1
    cause: str  # what was not finite
    samples: list[int] = []  # numbers of the samples among which the cause is
    bad_samples: list[int] = []  # those that are known to be the cause: later batches with one are left out, too


class Status(BaseModel):
    """Where a run stands: `status.json`, written whole by rank 0 and read by anyone."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a metric that is NaN is read back as NaN, not refused

    format_version: int = FORMAT_VERSION  # of the run directory
    state: State = "queued"
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0  # epochs finished, the fraction of the one that was begun included
    eta_s: float | None = None
    heartbeat: float = 0.0
    best: dict[str, float] | None = None  # step and metrics of the best evaluation
    best_by: str = "top1"  # the metric that says which is the best
    last: dict[str, float] | None = None  # step and metrics of the newest evaluation
    train_seconds: float = 0.0  # spent in this run over all attempts, start-up left out
    weights_digest: str | None = None  # of the weights and buffers at the end
    state_digest: str | None = None  # of these, the optimizer's state and the moving averages
    skipped_batches: list[SkippedBatch] = []
    unsaved_state: list[str] = []  # what network and loss change in training and no checkpoint holds
    attempts: list[Attempt] = []

    @field_validator("best", "last")
    @classmethod
    def _step_is_whole(cls, evaluation: dict[str, float] | None) -> dict[str, float] | None:
        return evaluation and {name: int(value) if name == "step" else value for name, value in evaluation.items()}

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated property
    @property
    def rollbacks(self) -> int:
        """How often training has gone back to a checkpoint, over all attempts: each time for one batch more."""
        return len(self.skipped_batches)

    @model_validator(mode="before")
    @classmethod
    def _read_skipped_steps(cls, data: Any) -> Any:
        """Take over what runs of earlier versions have left out; they counted steps from 0."""
        if isinstance(data, dict) and "skipped_steps" in data and "skipped_batches" not in data:
            steps = data["skipped_steps"]
            return {**data, "skipped_batches": [{"step": step + 1, "cause": "the loss"} for step in steps]}
        return data

    @property
    def mark(self) -> AttemptMark:
        """What tells the newest attempt from any other, without a clock: those of other machines may differ."""
        return len(self.attempts), self.attempts[-1].ended if self.attempts else None

    def close(self, state: State) -> None:
        """End the run in `state`, and the attempt that was still open, if one was: its process cannot say it itself."""
        self.state = state
        self.close_attempt(state)

    def begin_attempt(self, *, world_size: int, first_step: int) -> None:
        """Begin an attempt of this process; one that is open has failed: its rank 0 was killed and could not say so."""
        self.close_attempt("failed")
        self.state = "starting"
        self.attempts.append(
            Attempt(
                started=time.time(),
                host=socket.gethostname(),
                pid=os.getpid(),
                world_size=world_size,
                first_step=first_step,
                last_step=first_step,
                state="starting",
            )
        )

    def close_attempt(self, state: State) -> None:
        """End the attempt that is still open, if one is, when it was last heard of."""
        if self.attempts and self.attempts[-1].ended is None:
            self.attempts[-1].state, self.attempts[-1].ended = state, self.heartbeat or time.time()


class Job(BaseModel):
    """The SLURM job that trains a run, and the call of sbatch that submitted it: `job.json`."""

    id: str = ""  # SLURM's; one of an array is 123_4
    argv: list[str] = []  # none for a job that was submitted by hand
    env: dict[str, str] = {}
    cwd: str = ""


class Heartbeat(BaseModel):
    """Where one rank stands: `heartbeats/rank-R.json`, written once a second by that rank."""

    rank: int
    host: str
    pid: int
    time: float
    step: int  # steps taken
    phase: str
    progress: int
    threads: dict[str, str] = {}  # the stacks of all threads by their names, while `stacks-request` exists
