"""Types a capacity plan as it is printed: the memory, time and disk space of a run on its target."""

from pydantic import BaseModel

from distrain.benchmark.results import BenchmarkResult, Memory


class Step(BaseModel):
    """A step on the target, in seconds, by the scaling model; measured where the target is this node."""

    is_measured: bool
    step_s: float
    images_per_s: float
    efficiency: float | None  # against one process with its share of the batch
    compute_s: float | None = None
    exposed_reduction_s: float | None = None
    input_s: float | None = None
    jitter_s: float | None = None
    bottleneck: str | None = None


class Times(BaseModel):
    """The whole run in seconds."""

    steps: float
    evaluations: float
    checkpoints: float
    start_up: float
    total: float


class Limit(BaseModel):
    """The jobs of a run under a time limit."""

    limit_s: float
    fits: bool
    jobs: int | None  # None: the limit leaves no time to train
    requeues: int | None
    steps_per_job: int


class Disk(BaseModel):
    """The checkpoints that are kept, and the one being written."""

    checkpoint_bytes: int
    checkpoints: int
    num_bytes: int
    free_bytes: int
    has_room: bool
    folder: str


class Plan(BaseModel):
    """A plan as printed; None for values that cannot be known here, which `unknown` explains."""

    recipe: str
    device: str
    nodes: int
    processes: int
    batch: str
    measured_processes: int
    measured_device: str
    measured_images_per_s: float | None
    measured_step_s: float | None
    memory: Memory
    largest_micro_batch: int | None
    step: Step | None
    epochs: float
    total_steps: int
    num_evaluations: int
    num_checkpoints: int
    times: Times | None
    disk: Disk | None
    limit: Limit | None
    figures: BenchmarkResult
    unknown: list[str]
    assumptions: list[str]
