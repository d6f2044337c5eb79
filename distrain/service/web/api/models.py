"""Defines what the REST interface takes and gives, for its description; the objects are those of `--json`."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_PRIORITY = 1_000_000

RecipeKey: TypeAlias = Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z_]\w*(\.\w+)*$")]
RunName: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Priority: TypeAlias = Annotated[
    int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="runs with a higher number are served first")
]


class Problem(BaseModel):
    """Why a request was not served (RFC 9457)."""

    type: str = Field(description="`about:blank`: the status says what kind of problem it is")
    title: str = Field(description="the name of the status")
    status: int
    detail: str = Field(description="one sentence on what is wrong and what to do")


class _Open(BaseModel):
    """An object of `--json` that may have further members."""

    model_config = ConfigDict(extra="allow")


class RunSummary(_Open):
    """A run as `distrain runs --json` gives it: all of `status.json`, its labels, and where its best checkpoint is.

    Where columns were requested, only `run` and these keys.
    """

    run: str = Field(description="path of the run directory; its last part is the name of the run")
    state: str | None = Field(
        None,
        description="queued, starting, running, stopping, stopped, preempted, cancelled, failed, finished, died, "
        "never started, unreadable, or a state of SLURM",
    )
    step: int | None = None
    total_steps: int | None = None
    fault: str | None = Field(None, description="why an unreadable run cannot be read")


class RunPage(BaseModel):
    """A part of the list of runs."""

    runs: list[RunSummary]
    total: int = Field(description="how many runs match")
    limit: int
    offset: int


class Comparison(BaseModel):
    """Runs side by side: for each key a value of each run, in the order of `runs`; null where it has none."""

    runs: list[dict[str, Any]]
    recipe: dict[str, list[Any]] = Field(description="only the keys whose values differ")
    environment: dict[str, list[Any]] = Field(description="only the keys whose values differ")
    metrics: dict[str, list[Any]]


class Curve(BaseModel):
    """A metric over the steps: arrays of one length, an element for each bucket of adjoining records."""

    step: list[int | None]
    epoch: list[float | None]
    time: list[float | None] = Field(description="seconds since the epoch")
    mean: list[float | None]
    min: list[float | None]
    max: list[float | None]
    count: list[int] = Field(description="records in the bucket")
    num_not_finite: list[int] = Field(description="those of them whose value is not finite")
    is_exact: bool = Field(description="whether each record is a bucket of its own")


class Metrics(BaseModel):
    """Curves of a run, as of `step`."""

    run: str = Field(description="the name of the run")
    records: int = Field(description="records in metrics.jsonl")
    step: int = Field(description="the step of the newest record; 0 where there is none")
    curves: dict[str, Curve]


class MetricKeys(BaseModel):
    """The metrics that a run has recorded."""

    run: str
    keys: list[str]


class LogFile(BaseModel):
    """A log of a run."""

    name: str
    rank: int | None = Field(description="null for the logs of launchers")
    bytes: int


class LogPart(BaseModel):
    """A part of a log. `after` of one answer in the next request gives what has been written since."""

    run: str = Field(description="the name of the run")
    log: str
    first: int = Field(description="the position of `text` in the file, in bytes; 0 where the log began again")
    after: int = Field(description="the position behind `text`, in bytes")
    size: int = Field(description="of the file, in bytes")
    text: str = Field(description="bytes that are not UTF-8 are replaced")
    files: list[LogFile] = Field(description="all logs of the run")


class QueuedRun(_Open):
    """A run in the queue as `distrain queue --json` gives it."""

    run: str
    path: str
    state: str
    priority: int
    why: str = Field(description="what it waits for; empty for a run that trains")


class Device(_Open):
    """A device as `distrain devices --json` gives it."""

    id: str
    kind: Literal["gpu", "cpu"]
    name: str
    state: Literal["leased", "drained", "filled", "faulty", "free"]
    is_free: bool
    memory_bytes: int
    holder: dict[str, Any] | None = Field(description="the run that has it")
    drain: dict[str, Any] | None = Field(description="why it is out of service")
    filled_by: str | None
    fault: str | None


class SweepSummary(BaseModel):
    """A sweep in the list of all."""

    sweep: str = Field(description="its name")
    state: Literal["running", "finished", "stopped", "unreadable"]
    metric: str
    trials: int = Field(description="how many there will be")
    over: int = Field(description="how many are over")
    best: float | None = Field(description="the metric of the best trial")
    fault: str | None = Field(description="why an unreadable sweep cannot be read")


class Sweep(_Open):
    """A sweep as `distrain sweep --json` gives it."""

    sweep: str
    path: str
    metric: str
    is_over: bool
    trials: list[dict[str, Any]] = Field(description="the lines of trials.jsonl")
    best: dict[str, Any] | None
    repeats: list[dict[str, Any]] = Field(description="mean and spread of the best trials over other seeds")
    importance: dict[str, float]


class Devices(BaseModel):
    """What a run trains on: a process for each GPU or CPU slot."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["gpu", "cpu"]
    count: int = Field(1, ge=1, le=1024)


class SubmitRequest(BaseModel):
    """What to train: a recipe, or the recipe of a run, with changes."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"recipe": "digits", "set": {"optimizer.lr": 0.05}, "devices": {"kind": "cpu", "count": 1}}]
        },
    )

    recipe: str | None = Field(None, max_length=200, description="the name of a built-in recipe")
    run: str | None = Field(None, max_length=255, description="the name of a run whose recipe and code are used again")
    set: dict[RecipeKey, Any] = Field(
        {}, max_length=200, description="values by dotted key of the recipe, such as `optimizer.lr`"
    )
    data: str | None = Field(None, max_length=4000, description="the data: a path in a folder that `serve` allows")
    devices: Devices | None = Field(None, description="without it, those of the run or profile, else one GPU or CPU")
    profile: str | None = Field(None, max_length=200, description="the name of a built-in launch profile")
    priority: Priority = 0
    after: list[RunName] = Field([], max_length=100, description="names of runs that must have finished before")
    time: str | None = Field(None, max_length=100, description="a time limit as H:M:S; the run is saved at it")
    requeue: bool = Field(default=True, description="whether it may be stopped for others, and is resumed after a stop")

    @model_validator(mode="after")
    def _names_one_recipe(self) -> Self:
        if (self.recipe is None) == (self.run is None):
            raise ValueError("give either recipe or run")
        return self


class Submitted(BaseModel):
    """A run that is in the queue."""

    run: str = Field(description="the name of the run")
    path: str
    queue: Literal["local"]
    notes: list[str] = Field(description="what is unusual about its data, in sentences")


class Accepted(BaseModel):
    """What was done, or will happen to the run."""

    run: str
    state: str = Field(description="in status.json, now")
    message: str = Field(description="a sentence")


class PriorityRequest(BaseModel):
    """A place in the queue."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"priority": 5}]})

    priority: Priority


class LabelsRequest(BaseModel):
    """All labels of a run; what is not given is removed."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"tags": ["baseline"], "note": ""}]})

    tags: list[Annotated[str, Field(max_length=64, pattern=r"^[\w.+-]+$")]] = Field([], max_length=100)
    note: str = Field("", max_length=20_000)
