"""Reads what lists of runs need of each run, as fast as files can be read, and finds any of its values by a key."""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from distrain.config.metrics import ALWAYS_MEASURED
from distrain.errors import RunError
from distrain.messages import joined, nearest
from distrain.runs.checkpoints import final_path
from distrain.runs.directory import RunDirectory
from distrain.runs.format import FORMAT_VERSION
from distrain.runs.index import MIN_RUNS, Brief, RunFiles, RunIndex, RunMemory, take_stamp
from distrain.runs.labels import Labels, read_labels
from distrain.runs.liveness import find_states
from distrain.runs.query import best_checkpoint, find_fault, find_start_times
from distrain.runs.recipe_values import Sections, find_value, flatten, read_sections
from distrain.runs.status import Job, Status
from distrain.system.files import NotRegularError, open_regular

OWN_KEYS = ("name", "state", "recipe", "start", "step", "best", "loss", "time", "tag", "tags", "note")
_READERS = 4  # threads that wait for the disk together
_PART = 50  # runs that a thread fetches at a time
_FETCHED_BYTES = 1 << 16


@dataclass(frozen=True)
class Overview:
    """What a list shows of a run; one that cannot be read has a `fault`, and nothing else."""

    run: RunDirectory
    state: str
    brief: Brief
    sections: Sections = field(default_factory=dict)  # of the recipe; empty where it is damaged
    labels: Labels = field(default_factory=Labels)
    is_best_kept: bool = False  # whether there is a checkpoint of the best evaluation
    fault: str | None = None

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.run.path.name

    @cached_property
    def status(self) -> Status:
        """The whole status, which is read now."""
        return self.run.read_status()

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """The values of the recipe by dotted key."""
        return flatten(self.sections)

    @property
    def recipe_name(self) -> Any:
        """The name of the recipe; None where it is damaged."""
        return find_value(self.sections, "name")

    @property
    def best(self) -> Mapping[str, float] | None:
        """The best evaluation, if its checkpoint was kept."""
        return self.brief.best if self.is_best_kept else None

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the best evaluation, if it was kept."""
        return None if self.best is None else final_path(self.run.checkpoints, int(self.best["step"]))

    def find(self, key: str) -> Any:
        """Return the value of a key; None where the run has no value yet. Raises `KeyError` where it has no such key.

        The key is one of `OWN_KEYS`, a dotted key of the recipe, a field of `status.json` such as `epoch` or
        `best.step`, or a metric. A metric of evaluations, such as `val/top1`, is that of the newest evaluation, and
        with `best.` before it that of the best one. Other metrics are the newest values in `metrics.jsonl`.
        """
        if self.fault is not None and key not in {"name", "state"}:
            raise KeyError(key)
        if key in OWN_KEYS:
            return self._own(key)
        if key in self.recipe:
            return self.recipe[key]
        if key in Brief._fields:
            return getattr(self.brief, key)
        if key == "eta_s" and self.state != "running":  # the estimate of a run that died is void
            return None
        if key in Status.model_fields or key == "rollbacks":
            value = getattr(self.status, key)
            return len(value) if key in {"attempts", "skipped_batches"} else value
        which, dot, metric = key.partition(".")
        if dot and which in {"best", "last"}:
            return None if (found := getattr(self.brief, which)) is None else found[metric]
        if self.brief.last is not None and key in self.brief.last:
            return self.brief.last[key]
        if "/" in key:
            return self.run.read_newest_metrics()[key]
        raise KeyError(key)

    def _own(self, key: str) -> Any:
        brief, best = self.brief, self.best
        if key == "start":
            return self.status.attempts[0].started if self.status.attempts else None
        own: dict[str, Any] = {
            "name": self.name,
            "state": self.state,
            "recipe": self.recipe_name,
            "step": brief.step,
            "best": None if best is None else best.get(f"val/{brief.best_by}"),
            "loss": None if brief.last is None else brief.last.get(f"val/{ALWAYS_MEASURED}"),
            "time": brief.train_seconds,
            "tag": self.labels.tags,
            "tags": self.labels.tags,
            "note": self.labels.note or None,
        }
        return own[key]

    def summary(self) -> dict[str, Any]:
        """Return the run as a JSON object for scripts."""
        name = self.recipe_name
        labels = {"recipe": None if name is None else str(name), **self.labels.model_dump()}
        if (fault := self.fault or self._find_new_fault()) is not None:
            return {"run": str(self.run.path), "state": "unreadable", "fault": fault, **labels}
        best = None if self.best_checkpoint is None else str(self.best_checkpoint)
        more = {"state": self.state, "best_checkpoint": best}
        return {"run": str(self.run.path), **self.status.model_dump(), "eta_s": self.find("eta_s"), **more, **labels}

    def _find_new_fault(self) -> str | None:
        """Return why the status cannot be read any more, although it could when the list was read."""
        try:
            _ = self.status
        except RunError as error:
            return str(error)
        return None


def read_overviews(root: Path, memory: RunMemory | None = None) -> list[Overview]:
    """Read all runs directly below `root`, the oldest first; those that `memory` or the index knows are not read again.

    A process that lists the runs again and again passes the same `memory` each time.
    """
    times = find_start_times(root)
    if memory is None and len(times) < MIN_RUNS:
        return read_each([RunDirectory(root / name) for name in times])
    index, found = memory or RunIndex(root), dict[RunDirectory, RunFiles | None]()
    for name, started in times.items():
        run = RunDirectory(root / name)
        found[run] = index.find(run, started)
    if unknown := [run for run, files in found.items() if files is None]:
        _fetch(unknown)
        for run in unknown:
            stamp = take_stamp(run, times[run.path.name])
            found[run] = files = _read_files(run)  # after the stamp was taken
            index.add(run, stamp, files)
    index.save()
    return _find_states([(run, files) for run, files in found.items() if files is not None])


def read_each(runs: Sequence[RunDirectory]) -> list[Overview]:
    """Read these runs, in their order."""
    return _find_states([(run, _read_files(run)) for run in runs])


def _fetch(runs: Sequence[RunDirectory]) -> None:
    """Bring the files of many runs from the disk into memory, for one thread to read and parse them.

    Threads that did both would spend more time on handing over Python's lock than they save.
    """

    def fetch(some: Sequence[RunDirectory]) -> None:
        for run in some:
            with suppress(OSError, NotRegularError):
                for path in (run.status, run.recipe):
                    with open_regular(path) as file:
                        file.read(_FETCHED_BYTES)
                run.checkpoints.is_dir()

    with ThreadPoolExecutor(_READERS) as readers:
        list(readers.map(fetch, [runs[first : first + _PART] for first in range(0, len(runs), _PART)]))


def _find_states(found: Sequence[tuple[RunDirectory, RunFiles]]) -> list[Overview]:
    states = find_states([(run, files.brief.state, files.job) for run, files in found if files.fault is None])
    return [
        Overview(
            run,
            "unreadable" if files.fault is not None else states[run.path],
            files.brief,
            files.sections,
            files.labels,
            files.is_best_kept,
            files.fault,
        )
        for run, files in found
    ]


def _read_files(run: RunDirectory) -> RunFiles:
    status, job, fault = _read_state(run)
    is_best_kept = fault is None and best_checkpoint(run, status) is not None
    return RunFiles(Brief.of(status), read_sections(run), find_labels(run), job, is_best_kept, fault)


def find_values(overviews: Iterable[Overview], key: str, *, option: str) -> list[Any]:
    """Return the value of a key for each run, None where it has none; raises `RunError` where no run has the key."""
    found, is_known, overviews = [], False, list(overviews)
    for overview in overviews:
        try:
            found.append(overview.find(key))
            is_known = True
        except KeyError:
            found.append(None)
    if not is_known and overviews:
        known = dict.fromkeys(key for overview in overviews for key in _known_keys(overview))
        hint = nearest(key, known) or f"; use {joined(OWN_KEYS)}, a key of the recipe, or a metric such as val/loss"
        raise RunError(f"{option} {key}: no run has this key{hint}")
    return [None if isinstance(value, float) and math.isnan(value) else value for value in found]


def pick(found: Sequence[Overview], columns: Sequence[str], *, option: str = "--columns") -> list[dict[str, Any]]:
    """Return the values of the columns for scripts, and the run; raises `RunError` for a column that no run has."""
    picked = {key: find_values(found, key, option=option) for key in columns}
    return [
        {"run": str(overview.run.path)} | {key: values[number] for key, values in picked.items()}
        for number, overview in enumerate(found)
    ]


def _known_keys(overview: Overview) -> list[str]:
    evaluations = {"last": overview.brief.last or {}, "best": overview.brief.best or {}}
    metrics = [*evaluations["last"], *(f"{which}.{name}" for which, found in evaluations.items() for name in found)]
    return [*OWN_KEYS, *overview.recipe, *Status.model_fields, *metrics, *overview.run.read_newest_metrics()]


def _read_state(run: RunDirectory) -> tuple[Status, Job | None, str | None]:
    """Return the status and the job of a run, and in a sentence why they cannot be read, or None."""
    try:
        status, job = run.read_status(), run.read_job()
        run.read_local_job()
    except (RunError, OSError):
        status, job = Status(format_version=FORMAT_VERSION + 1), None
    if status.format_version <= FORMAT_VERSION:
        return status, job, None
    fault = find_fault(run)
    return (run.read_status(), run.read_job(), None) if fault is None else (Status(), None, fault)


def find_labels(run: RunDirectory) -> Labels:
    """Return the labels of a run, empty where their file cannot be read."""
    with suppress(RunError, OSError):
        return read_labels(run)
    return Labels()
