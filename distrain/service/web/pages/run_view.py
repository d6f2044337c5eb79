"""Gathers what the page of a run shows; what is missing or damaged is a sentence on the page."""

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from distrain.config.metrics import METRICS, format_evaluation, format_metric
from distrain.errors import UserError
from distrain.messages import byte_size, counted
from distrain.runs import checkpoints
from distrain.runs.attempts import ExplainedAttempt, explain_attempts
from distrain.runs.directory import RunDirectory
from distrain.runs.liveness import LIVE_STATES, WAITING
from distrain.runs.local_job import LocalJob, counted_devices
from distrain.runs.overview import Overview, read_each
from distrain.runs.query import best_checkpoint, describe_unsaved, resume_command
from distrain.runs.value_formats import show_value
from distrain.service.web.pages.recipe_view import Change, flatten, list_recipe
from distrain.system.display import duration
from distrain.system.files import read_whole

T = TypeVar("T")
_MACHINE = ("rank", "node", "gpu")  # prefixes of figures that are folded
_FIRST = ("val", "train")


@dataclass(frozen=True)
class ChartGroup:
    """Metrics with one prefix; `is_folded` for those that few people look at."""

    title: str
    keys: tuple[str, ...]
    is_folded: bool


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as the page lists it."""

    name: str
    step: int
    written: float
    size: str
    evaluation: str
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as its page shows it."""

    overview: Overview
    job: LocalJob | None
    facts: tuple[tuple[str, str], ...]
    attempts: tuple[ExplainedAttempt, ...]
    checkpoints: tuple[Checkpoint, ...]
    recipe: tuple[Change, ...]
    environment: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    notes: tuple[str, ...]  # sentences on what cannot be read, or is missing

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.overview.name

    @property
    def failure(self) -> str | None:
        """Why its newest attempt has failed; None where it has not."""
        is_failed = self.overview.state in {"failed", "died"} and self.attempts
        return f"{self.overview.state.capitalize()}: {self.attempts[-1].why}" if is_failed else None

    @property
    def is_alive(self) -> bool:
        """Whether a process trains it or is about to."""
        return self.overview.state in LIVE_STATES

    @property
    def is_waiting(self) -> bool:
        """Whether it waits in a queue."""
        return self.overview.state in WAITING

    @property
    def is_resumable(self) -> bool:
        """Whether it has ended before its last step."""
        is_over = not self.is_alive and not self.is_waiting
        return is_over and self.overview.fault is None and self.overview.state != "finished"


def read_run_view(run: RunDirectory) -> RunView:
    """Read a run."""
    overview = read_each([run])[0]
    notes: list[str] = []
    if overview.fault is not None:
        notes.append(f"The state of this run cannot be read: {overview.fault}.")
    job = _read(run.read_local_job, notes)
    recipe = list_recipe(overview)
    if not recipe:
        notes.append("The recipe cannot be read, so its values are not shown.")
    environment = _read(lambda: read_whole(run.environment, _read_object), notes)
    if environment is None:
        notes.append("There is no record of versions, devices and code: env.json is missing or damaged.")
    is_readable = overview.fault is None
    if is_readable and (unsaved := describe_unsaved(run)) is not None:
        notes.append(f"{unsaved[0].upper()}{unsaved[1:]}.")
    return RunView(
        overview=overview,
        job=job,
        facts=tuple(_facts(overview, job)) if is_readable else (),
        attempts=tuple(explain_attempts(run, overview.status, state=overview.state)) if is_readable else (),
        checkpoints=tuple(list_checkpoints(run)),
        recipe=tuple(recipe),
        environment=tuple(list_environment(environment or {})),
        commands=tuple(_commands(run, overview)),
        notes=tuple(notes),
    )


def group_keys(keys: Sequence[str]) -> list[ChartGroup]:
    """Return metrics by their prefix: validation and training first, figures of machines last and folded."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.partition("/")[0], []).append(key)
    order = [*_FIRST, *(name for name in groups if name not in {*_FIRST, *_MACHINE}), *_MACHINE]
    return [ChartGroup(name, tuple(groups[name]), name in _MACHINE) for name in order if name in groups]


def better(key: str) -> str | None:
    """Return whether `higher` or `lower` values of a metric are better; None where neither is known."""
    name = key.partition("/")[2].partition("/")[0]
    if name not in METRICS or not key.startswith(("val/", "train/")):
        return None
    return "higher" if METRICS[name].is_higher_better else "lower"


def list_logs(run: RunDirectory) -> list[str]:
    """Return the names of the logs of a run: that of rank 0, even if it does not exist, comes first."""
    names = {run.log(0).name, *(path.name for path in run.logs.glob("*.log"))}
    return sorted(names, key=lambda name: (not name.startswith("rank-"), len(name), name))


def list_checkpoints(run: RunDirectory) -> list[Checkpoint]:
    """Return the checkpoints of a run, the newest first."""
    entries = checkpoints.read_catalog(run.checkpoints)
    best = checkpoints.find_best(entries)
    return [
        Checkpoint(
            name=entry.path.name,
            step=entry.step,
            written=entry.written,
            size=byte_size(entry.num_bytes),
            evaluation=format_evaluation(entry.evaluation) if entry.evaluation else "",
            is_best=entry is best,
        )
        for entry in reversed(entries)
    ]


def list_environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the environment of a run as titles and texts, without the differences of its code."""
    rows = []
    for key, value in flatten(environment).items():
        if key == "git.diff":
            rows.append((key, counted(len(str(value).splitlines()), "line") if value else "none"))
        elif value not in (None, [], {}):
            rows.append((key, show_value(value)))
    return rows


def describe_progress(overview: Overview) -> str:
    """Return how far a run is, and how long it still takes."""
    brief = overview.brief
    if not brief.total_steps:
        return "no step yet"
    text = f"step {brief.step:,} of {brief.total_steps:,} ({brief.step / brief.total_steps:.0%})"
    left = overview.find("eta_s") if overview.state == "running" else None
    return f"{text}, {duration(left)} left" if left else text


def _facts(overview: Overview, job: LocalJob | None) -> list[tuple[str, str]]:
    status, run = overview.status, overview.run
    rows = [("epochs", f"{status.epoch:.6g}"), ("time", duration(status.train_seconds))]
    for title, metrics in (("newest", status.last), ("best", status.best)):
        if metrics is not None:
            is_lost = title == "best" and best_checkpoint(run, status) is None
            kept = ", not kept" if is_lost else ""
            rows.append((title, f"{format_metric(status.best_by, metrics)} at step {metrics['step']:,.0f}{kept}"))
    rows.append(("recipe", str(overview.recipe_name or "unknown")))
    if status.attempts:
        rows.append(("started", time.strftime("%F %T", time.localtime(status.attempts[0].started))))
    if job is not None:
        place = ", ".join(job.assigned) or counted_devices(job.devices, job.kind)
        rows += [("devices", place), ("priority", str(job.priority))]
        rows += [("preemptions", str(job.preemptions))] if job.preemptions else []
        rows += [("after", ", ".join(job.after))] if job.after else []
    if status.weights_digest:
        rows.append(("weights", status.weights_digest))
    if status.state_digest:
        rows.append(("state", status.state_digest))
    return rows


def _commands(run: RunDirectory, overview: Overview) -> list[str]:
    path = shlex.quote(str(run.path))
    commands = [f"distrain runs show {path}"]
    if overview.fault is None and overview.state != "finished":
        try:
            commands.insert(0, resume_command(run))
        except UserError:
            commands.insert(0, f"distrain resume {path}")
    commands += [f"distrain logs -f {path}", f"distrain eval {path}"]
    if run.tensorboard.is_dir():
        commands.append(f"tensorboard --logdir {shlex.quote(str(run.tensorboard))}")
    return commands


def _read(read: Callable[[], T], notes: list[str]) -> T | None:
    try:
        return read()
    except (UserError, OSError, ValueError) as error:
        notes.append(f"{error}.")
    return None


def _read_object(text: str) -> dict[str, Any] | None:
    found = json.loads(text)
    return found if isinstance(found, dict) else None
