"""Reads what lists of runs need of each run, as fast as files can be read, and finds any of its values by a key."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from operator import or_
from pathlib import Path
from typing import Any

import yaml

from distrain.config.metrics import ALWAYS_MEASURED
from distrain.config.old_names import rename_keys
from distrain.errors import RecipeError, RunError
from distrain.messages import joined, nearest
from distrain.runs.directory import RunDirectory
from distrain.runs.format import FORMAT_VERSION
from distrain.runs.labels import Labels, read_labels
from distrain.runs.liveness import find_states
from distrain.runs.query import best_checkpoint, find_fault, find_runs
from distrain.runs.status import Job, Status

OWN_KEYS = ("name", "state", "recipe", "start", "step", "best", "loss", "time", "tag", "tags", "note")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is installed
_SECTION = re.compile(r"^(?=[^\s#-])", re.MULTILINE)  # where a key at the top level of a recipe begins


@dataclass(frozen=True)
class Overview:
    """What a list shows of a run; one that cannot be read has a `fault`, and nothing else."""

    run: RunDirectory
    state: str
    status: Status = field(default_factory=Status)
    recipe: Mapping[str, Any] = field(default_factory=dict)  # its values by dotted key; empty where it is damaged
    labels: Labels = field(default_factory=Labels)
    best_checkpoint: Path | None = None  # of the best evaluation, if it was kept
    fault: str | None = None

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.run.path.name

    @property
    def best(self) -> dict[str, float] | None:
        """The best evaluation, if its checkpoint was kept."""
        return None if self.best_checkpoint is None else self.status.best

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
        if key in Status.model_fields or key == "rollbacks":
            value = getattr(self.status, key)
            return len(value) if key in {"attempts", "skipped_batches"} else value
        which, dot, metric = key.partition(".")
        if dot and which in {"best", "last"}:
            return None if (found := getattr(self.status, which)) is None else found[metric]
        if self.status.last is not None and key in self.status.last:
            return self.status.last[key]
        if "/" in key:
            return self.run.read_newest_metrics()[key]
        raise KeyError(key)

    def _own(self, key: str) -> Any:
        status, best = self.status, self.best
        own: dict[str, Any] = {
            "name": self.name,
            "state": self.state,
            "recipe": self.recipe.get("name"),
            "start": status.attempts[0].started if status.attempts else None,
            "step": status.step,
            "best": None if best is None else best.get(f"val/{status.best_by}"),
            "loss": None if status.last is None else status.last.get(f"val/{ALWAYS_MEASURED}"),
            "time": status.train_seconds,
            "tag": self.labels.tags,
            "tags": self.labels.tags,
            "note": self.labels.note or None,
        }
        return own[key]

    def summary(self) -> dict[str, Any]:
        """Return the run as a JSON object for scripts."""
        labels = {"recipe": self.recipe.get("name") and str(self.recipe["name"]), **self.labels.model_dump()}
        if self.fault is not None:
            return {"run": str(self.run.path), "state": self.state, "fault": self.fault, **labels}
        best = None if self.best_checkpoint is None else str(self.best_checkpoint)
        more = {"state": self.state, "best_checkpoint": best}
        if self.state != "running":  # the estimate of a run that died is void
            more["eta_s"] = None
        return {"run": str(self.run.path), **self.status.model_dump(), **more, **labels}


def read_overviews(root: Path) -> list[Overview]:
    """Read all runs directly below `root`, the oldest first."""
    return read_each(find_runs(root))


def read_each(runs: Sequence[RunDirectory]) -> list[Overview]:
    """Read these runs, in their order."""
    found: list[tuple[RunDirectory, Status, Job | None, str | None]] = [(run, *_read(run)) for run in runs]
    states = find_states([(run, status, job) for run, status, job, fault in found if fault is None])
    return [
        Overview(run, "unreadable", recipe=read_recipe_values(run), labels=find_labels(run), fault=fault)
        if fault is not None
        else Overview(
            run,
            states[run.path],
            status,
            read_recipe_values(run),
            find_labels(run),
            best_checkpoint(run, status),
        )
        for run, status, _, fault in found
    ]


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


def _known_keys(overview: Overview) -> list[str]:
    evaluations = {"last": overview.status.last or {}, "best": overview.status.best or {}}
    metrics = [*evaluations["last"], *(f"{which}.{name}" for which, found in evaluations.items() for name in found)]
    return [*OWN_KEYS, *overview.recipe, *Status.model_fields, *metrics, *overview.run.read_newest_metrics()]


def read_recipe_values(run: RunDirectory) -> dict[str, Any]:
    """Return the values of a run's recipe by dotted key; empty where it cannot be read."""
    with suppress(OSError, ValueError, yaml.YAMLError, RecipeError):
        text = run.recipe.read_text(encoding="utf-8")
        sections = [part for part in _SECTION.split(text) if part.strip()]
        try:
            parsed = [_parse(part) for part in sections]
            if all(len(values) > 0 for values in parsed):
                return reduce(or_, parsed, {})
        except (ValueError, yaml.YAMLError):
            pass  # a section cannot be read without the others
        return dict(_parse(text))
    return {}


@lru_cache(maxsize=1 << 14)  # the runs of a sweep have most sections in common
def _parse(text: str) -> dict[str, Any]:
    """Return the values in YAML text by dotted key, empty where it is no mapping; the result must not be changed."""
    tree = yaml.load(text, Loader=_LOADER)
    if not isinstance(tree, dict):
        return {}
    rename_keys(tree)
    return _flat(tree)


def _flat(tree: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            values |= _flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def _read(run: RunDirectory) -> tuple[Status, Job | None, str | None]:
    """Return the status and the job of a run, and in a sentence why they cannot be read, or None."""
    try:
        status, job = run.read_status(), run.read_job()
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
