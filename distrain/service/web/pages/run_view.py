"""Gathers what the page of a run shows; what is missing or damaged is a sentence on the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distrain.config.metrics import NO_OWN, OwnMetrics, is_higher_better
from distrain.runs.directory import RunDirectory
from distrain.runs.facts import RunFacts, read_facts
from distrain.runs.liveness import LIVE_STATES, WAITING
from distrain.runs.local_job import LocalJob, counted_devices
from distrain.service.web.pages.recipe_view import Change, list_recipe
from distrain.service.web.template_environment import as_address
from distrain.service.web.views.evaluations import EvaluationView, show_evaluations
from distrain.service.web.views.pictures import SheetView, show_sheet
from distrain.service.web.views.summary import (
    Tile,
    describe_environment,
    describe_interruptions,
    describe_outcome,
    find_faults,
    show_commands,
    show_digests,
    show_tiles,
)
from distrain.service.web.views.tables import Table, list_checkpoints, list_skipped

_MACHINE = ("rank", "node", "gpu")  # prefixes of figures that are folded
_FIRST = ("val", "train")


@dataclass(frozen=True)
class ChartGroup:
    """Metrics with one prefix; `is_folded` for those that few people look at."""

    title: str
    keys: tuple[str, ...]
    is_folded: bool


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as its page shows it; without what its status has where that cannot be read."""

    facts: RunFacts
    outcome: str
    tiles: Sequence[Tile]
    digests: Mapping[str, str]
    faults: Sequence[str]  # why it failed, and what slows it down
    notes: Sequence[str]  # what cannot be read, or is missing
    skipped: Table | None
    checkpoints: Table | None
    recipe: Sequence[Change]
    environment: Mapping[str, str]
    commands: Mapping[str, str]
    evaluations: Sequence[EvaluationView]
    sheet: SheetView | None
    logs: Sequence[str]

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.facts.overview.name

    @property
    def is_alive(self) -> bool:
        """Whether a process trains it or is about to."""
        return self.facts.overview.state in LIVE_STATES

    @property
    def is_waiting(self) -> bool:
        """Whether it waits in a queue."""
        return self.facts.overview.state in WAITING

    @property
    def is_resumable(self) -> bool:
        """Whether it has ended before its last step."""
        overview = self.facts.overview
        return not self.is_alive and not self.is_waiting and overview.fault is None and overview.state != "finished"


def read_run_view(run: RunDirectory) -> RunView:
    """Read a run."""
    facts, address = read_facts(run), partial(_find_address, run)
    overview = facts.overview
    is_readable, fault = overview.fault is None, f"the state of this run cannot be read: {overview.fault}"
    return RunView(
        facts=facts,
        outcome=describe_outcome(facts) if is_readable else "",
        tiles=[*show_tiles(facts), *_show_job(facts.job)] if is_readable else [],
        digests=show_digests(overview.status) if is_readable else {},
        faults=find_faults(facts) if is_readable else [fault],
        notes=[*facts.notes, *(describe_interruptions(facts) if is_readable else [])],
        skipped=list_skipped(overview.status) if is_readable else None,
        checkpoints=list_checkpoints(facts),
        recipe=list_recipe(overview),
        environment=describe_environment(facts.environment),
        commands=show_commands(facts),
        evaluations=show_evaluations(run, address),
        sheet=show_sheet(run, address),
        logs=list_logs(run),
    )


def group_keys(keys: Sequence[str]) -> list[ChartGroup]:
    """Return metrics by their prefix: validation and training first, figures of machines last and folded."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.partition("/")[0], []).append(key)
    order = [*_FIRST, *(name for name in groups if name not in {*_FIRST, *_MACHINE}), *_MACHINE]
    return [ChartGroup(name, tuple(groups[name]), name in _MACHINE) for name in order if name in groups]


def better(key: str, own: OwnMetrics = NO_OWN) -> str | None:
    """Return whether `higher` or `lower` values of a metric are better; None where neither is known.

    `own` are the metrics of the run that are not distrain's.
    """
    name = key.partition("/")[2].partition("/")[0]
    is_up = is_higher_better(name, own) if key.startswith(("val/", "train/")) else None
    return None if is_up is None else "higher" if is_up else "lower"


def list_logs(run: RunDirectory) -> list[str]:
    """Return the names of the logs of a run: that of rank 0, even if it does not exist, comes first."""
    names = {run.log(0).name, *(path.name for path in run.logs.glob("*.log"))}
    return sorted(names, key=lambda name: (not name.startswith("rank-"), len(name), name))


def _find_address(run: RunDirectory, picture: Path) -> str:
    """Return where `files.py` serves a picture of a run; empty where it does not exist."""
    inner = picture.relative_to(run.path)
    return f"/runs/{as_address(run.path.name)}/{as_address(str(inner))}" if picture.is_file() else ""


def _show_job(job: LocalJob | None) -> list[Tile]:
    """Return what the queue knows of a run."""
    if job is None:
        return []
    tiles = [Tile("Devices", ", ".join(job.assigned) or counted_devices(job.devices, job.kind))]
    tiles += [Tile("Priority", f"{job.priority:,}")] if job.priority else []
    return tiles + ([Tile("After", ", ".join(job.after))] if job.after else [])
