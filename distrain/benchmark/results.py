"""Reads and writes the results of a measurement in seconds, bytes and images per second."""

import json
import math
import statistics
from collections.abc import Sequence

from pydantic import BaseModel

from distrain.runs.directory import RunDirectory
from distrain.system.files import to_json, write_atomically


class Spread(BaseModel):
    """A time that was measured several times, in seconds."""

    median: float
    lower: float  # the first quartile
    upper: float  # the third quartile
    deviation: float  # standard deviation of a single step, from the interquartile range
    count: int  # values, each the mean of `steps` steps
    steps: int = 1


class Memory(BaseModel):
    """Bytes of the rank that needs most; `peak` is that of the process, or of the allocations on its GPU."""

    peak: int
    peaks: list[int]  # of each rank
    weights: int  # buffers included
    gradients: int
    optimizer: int
    averages: int
    activations: int  # and everything else that a step adds to what is allocated between steps
    total: int | None  # available on this node or GPU


class Communication(BaseModel):
    """The reduction of the gradients over the ranks, alone and within a step."""

    gradient_bytes: int
    all_reduce_s: float  # of all gradients at once
    latency_s: float  # of one number
    exposed_s: float | None = None  # the additional time of a step with reduction; None where the strategy needs it

    def bus_bandwidth(self, processes: int) -> float:
        """Return bytes per second over each link of a ring, which transfers 2 (n - 1) / n of the bytes."""
        steps = 2 * (processes - 1)
        transfer_s = max(self.all_reduce_s - self.latency_s, 1e-9)
        return steps / processes * self.gradient_bytes / transfer_s


class Saving(BaseModel):
    """The second checkpoint: the first one also allocates the memory in which later ones are staged."""

    num_bytes: int
    blocked_s: float  # training was blocked
    commit_s: float  # until it was on disk, verified and renamed
    first_blocked_s: float


class BenchmarkResult(BaseModel):
    """The results of a measurement: `figures.json`. Rates are those of all ranks together."""

    processes: int
    device: str  # its name
    threads: int
    num_workers: int
    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    num_train_samples: int
    num_val_samples: int
    steps_per_epoch: int
    began: float  # seconds since the epoch, when the first step was done
    step_s: Spread
    images_per_s: float
    memory: Memory
    communication: Communication | None = None  # None for one process
    loader_images_per_s: float | None = None
    compute_images_per_s: float | None = None  # on the same batch repeatedly, reduction included
    lone_step_s: float | None = None  # the same without reduction; None where the strategy needs it
    parts_s: dict[str, float] | None = None  # of a step in the profiled stretch, on rank 0
    saving: Saving | None = None
    evaluation_images_per_s: float | None = None
    largest_micro_batch: int | None = None
    notes: list[str] = []  # what could not be measured, and why
    unforeseen: list[str] = []  # what follows from what happens in the training, so that no plan has it

    @property
    def compute_step_s(self) -> float | None:
        """The time of a full step whose batch is ready."""
        return None if self.compute_images_per_s is None else self.global_batch_size / self.compute_images_per_s


def spread(seconds: Sequence[float], *, steps: int = 1) -> Spread:
    """Summarise two or more values that are each the mean of `steps` steps.

    The deviation of a single step is the half-width of the middle half over 0.6745, as for a normal distribution, times
    the root of `steps`, as if steps were independent.
    """
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    deviation = (upper - lower) / 2 / statistics.NormalDist().inv_cdf(0.75) * math.sqrt(steps)
    return Spread(median=median, lower=lower, upper=upper, deviation=deviation, count=len(seconds), steps=steps)


def write_figures(folder: RunDirectory, figures: BenchmarkResult) -> None:
    """Write the results."""
    write_atomically(folder.figures, to_json(figures))


def read_figures(folder: RunDirectory) -> BenchmarkResult:
    """Read the results."""
    return BenchmarkResult.model_validate(json.loads(folder.figures.read_text(encoding="utf-8")))
