"""Holds where this rank and its run are: step, phase and progress, and the status that `status.json` is a copy of.

The state has one owner, the training loop, which assigns plain attributes and waits for nothing. The threads that
write heartbeat and status only read it.
"""

import threading
import time
from typing import Literal, Protocol, get_args

from distrain.config.metrics import is_better
from distrain.runs.status import Changes, SkippedBatch, State, Status

Phase = Literal[
    "start-up",
    "data",
    "forward",
    "backward",
    "reduce",
    "update",
    "sync",
    "evaluate",
    "record",
    "save",
    "measure",
    "close",  # the loggers: what they still hold goes to disk or over the network
]
PHASES: tuple[str, ...] = get_args(Phase)  # in the order in which a step comes to them


class StepProgress(Protocol):
    """What the training loop sets as it goes: read by the heartbeat, or timed by a benchmark."""

    step: int
    phase: Phase
    progress: int


class StepTimer:
    """Times the steps of an attempt, without start-up."""

    def __init__(self, *, first_step: int = 0, earlier_s: float = 0.0) -> None:
        """`earlier_s` are the seconds that earlier attempts have trained for."""
        self._first_step = first_step
        self._earlier_s = earlier_s
        self._started = time.monotonic()

    @property
    def train_seconds(self) -> float:
        """Seconds of training up to now, over all attempts."""
        return self._earlier_s + time.monotonic() - self._started

    def seconds_per_step(self, step: int) -> float | None:
        """Return the mean seconds of a step of this attempt, evaluations and saves included; None before the first."""
        done = step - self._first_step
        return (time.monotonic() - self._started) / done if done else None


class TrainState:
    """Where this rank is, in attributes for the loop to set, and where the run is, behind methods."""

    def __init__(self) -> None:
        self.step = 0  # steps taken
        self.phase: Phase = "start-up"
        self.progress = 0  # counts micro-batches and batches, so that a stall differs from a long step or evaluation
        self.evaluated = 0  # batches of the evaluation in progress, of this rank
        self.to_evaluate = 0  # batches that it has
        self.must_watch_steps = False  # after values that were not finite: the watch checks every step
        self.has_begun = False  # whether start-up is over, and the status is this attempt's
        self._status = Status()
        self._steps_per_epoch = 0
        self._timer = StepTimer()
        self._lock = threading.Lock()  # so that no snapshot has a partial change

    def load(self, status: Status) -> None:
        """Restore the status of earlier attempts."""
        with self._lock:
            self._status = status

    def begin_attempt(
        self,
        *,
        world_size: int,
        first_step: int = 0,
        total_steps: int = 0,
        steps_per_epoch: int = 0,
        best: dict[str, float] | None = None,
        best_by: str = "top1",
        own_metrics: dict[str, bool | None] | None = None,
        unsaved_state: list[str] | None = None,
    ) -> None:
        """Begin an attempt at `first_step`, after start-up. Evaluations and benchmarks have no epochs.

        `best` is the best evaluation up to there and `best_by` its metric; `own_metrics` says of those that are not
        distrain's whether higher is better; `unsaved_state` names what no checkpoint holds.
        """
        with self._lock:
            status = self._status
            status.begin_attempt(world_size=world_size, first_step=first_step)
            status.total_steps, status.best, status.best_by = total_steps, best, best_by
            status.unsaved_state, status.steps_per_epoch = unsaved_state or [], steps_per_epoch
            status.own_metrics = own_metrics or {}
            self._steps_per_epoch = steps_per_epoch
            self._timer = StepTimer(first_step=first_step, earlier_s=status.train_seconds)
            self.step = status.step = first_step
            self.has_begun = True

    @property
    def changes(self) -> Changes:
        """What the recipe changes since the newest attempt; empty once this one has begun."""
        return self._status.changes

    def lifts(self, ending: str, step: int) -> bool:
        """Whether the limit `train.ENDING` that ended the run at a step was changed there, to train further."""
        return self._status.lifts(ending, step)

    @property
    def best(self) -> dict[str, float] | None:
        """Step and metrics of the best evaluation."""
        return self._status.best

    @property
    def last_evaluation(self) -> dict[str, float] | None:
        """Step and metrics of the newest evaluation."""
        return self._status.last

    @property
    def skipped_batches(self) -> list[SkippedBatch]:
        """The batches that are skipped because they caused values that are not finite; `skip` adds one."""
        return self._status.skipped_batches

    @property
    def train_seconds(self) -> float:
        """Seconds of training so far, over all attempts, without start-up."""
        return self._timer.train_seconds

    @property
    def seconds_per_step(self) -> float | None:
        """Mean seconds per step of this attempt, including evaluations and saves; None before the first step."""
        return self._timer.seconds_per_step(self.step)

    def keep_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Store an evaluation; that of step 0, which has no checkpoint, is never the best."""
        with self._lock:
            self._status.last = {"step": step, **metrics}
            if step > 0 and is_better(self._status.best_by, metrics, self._status.best, self._status.own_metrics):
                self._status.best = self._status.last

    def skip(self, batch: SkippedBatch) -> None:
        """Skip a batch from now on."""
        with self._lock:
            self._status.skipped_batches = [*self._status.skipped_batches, batch]

    def stop_at(self, step: int) -> None:
        """Make `step` the last one."""
        with self._lock:
            self._status.total_steps = step

    def keep_diagnosis(self, sentence: str) -> None:
        """Store a sentence on what holds up the run."""
        with self._lock:
            self._status.diagnosis = [*self._status.diagnosis, sentence]

    def keep_digests(self, *, weights: str, state: str) -> None:
        """Store the digests at the end of the run."""
        with self._lock:
            self._status.weights_digest, self._status.state_digest = weights, state

    def snapshot(self, state: State | None = None) -> Status:
        """Return a copy of the current status, after changing to a new state if one is given."""
        with self._lock:
            status, step, now = self._status, self.step, time.time()
            pace_s = self._timer.seconds_per_step(step)
            status.state = state or status.state
            status.step = step
            status.epoch = round(step / self._steps_per_epoch, 4) if self._steps_per_epoch else 0.0
            status.heartbeat = now
            status.train_seconds = self._timer.train_seconds
            status.eta_s = None if pace_s is None else (status.total_steps - step) * pace_s
            attempt = status.attempts[-1]
            attempt.state, attempt.last_step = status.state, step
            if status.state in {"finished", "failed", "stopped"}:
                attempt.ended = now
            return status.model_copy(deep=True)
