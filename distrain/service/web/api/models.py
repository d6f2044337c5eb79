"""Defines what the REST interface takes and gives, for its description; the objects are those of `--json`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


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
    is_exact: bool = Field(description="whether each record is a bucket of its own")


class Metrics(BaseModel):
    """Curves of a run, as of `step`."""

    run: str = Field(description="the name of the run")
    records: int = Field(description="records in metrics.jsonl")
    step: int | None = Field(description="the step of the newest record")
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
