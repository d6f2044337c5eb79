"""Compares runs: in which values their recipes and environments differ, and what each run has reached."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from distrain.config.metrics import NO_OWN, OwnMetrics, is_higher_better
from distrain.config.profile import read_profile
from distrain.errors import RunError
from distrain.runs.directory import RunDirectory
from distrain.runs.overview import Overview, read_each
from distrain.system.files import read_whole

MIN_RUNS, MAX_RUNS = 2, 20
_REACHED = ("state", "step", "time", "train/loss", "train/samples_per_s")
_PROFILE = ("launcher", "device", "nodes", "threads")  # what decides rounding and speed, besides the processes


@dataclass(frozen=True)
class Comparison:
    """Values by key, one for each run in the order of `runs`; None where a run has no value.

    `recipe` and `environment` have only the keys whose values differ.
    """

    runs: list[Overview]
    recipe: dict[str, list[Any]]
    environment: dict[str, list[Any]]
    metrics: dict[str, list[Any]]

    @property
    def own_metrics(self) -> OwnMetrics:
        """The metrics of the runs that are not distrain's: whether higher is better; None where the runs disagree."""
        found: dict[str, bool | None] = {}
        for name, is_up in (pair for run in self.runs for pair in run.brief.own_metrics.items()):
            found[name] = is_up if found.get(name, is_up) == is_up else None
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON object."""
        runs = [
            {"run": str(o.run.path), "name": o.name, "best_checkpoint": o.best_checkpoint and str(o.best_checkpoint)}
            for o in self.runs
        ]
        return {"runs": runs, "recipe": self.recipe, "environment": self.environment, "metrics": self.metrics}


def compare(runs: Sequence[RunDirectory]) -> Comparison:
    """Compare 2 to `MAX_RUNS` runs; raises `RunError` for another number, and for a run that cannot be read."""
    distinct = {run.path.resolve(): run for run in runs}
    if not MIN_RUNS <= len(distinct) <= MAX_RUNS:
        raise RunError(f"compare takes {MIN_RUNS} to {MAX_RUNS} different runs, not {len(distinct)}")
    found = read_each(list(distinct.values()))
    for overview in found:
        if overview.fault is not None:
            raise RunError(f"run {overview.name} cannot be read: {overview.fault}")
    return Comparison(
        found,
        _differing([overview.recipe for overview in found]),
        _differing([_read_environment(overview) for overview in found]),
        _read_metrics(found),
    )


def find_best_columns(key: str, values: Sequence[Any], own: OwnMetrics = NO_OWN) -> list[int]:
    """Return the positions of the best values of a metric; empty where there is no best one, or all are equal.

    `own` are the metrics of the runs that are not distrain's.
    """
    name = key.removeprefix("best.").removeprefix("val/").partition("/")[0]
    numbers = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    is_up = is_higher_better(name, own)
    if "val/" not in key or is_up is None or len(set(numbers)) < 2:
        return []
    best = max(numbers) if is_up else min(numbers)
    return [number for number, value in enumerate(values) if value == best]


def _differing(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for values in found for key in values)
    rows = {key: [values.get(key) for values in found] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _read_environment(overview: Overview) -> dict[str, Any]:
    """Return what may change results or speed: versions, code, devices and processes, but not names of machines."""
    run = overview.run
    environment: dict[str, Any] = read_whole(run.environment, json.loads) or {}
    driver, git = environment.get("driver") or {}, environment.get("git") or {}
    diff = git.get("diff")
    profile = read_profile(run.profile).model_dump() if run.profile.exists() else {}
    world_sizes = dict.fromkeys(str(attempt.world_size) for attempt in overview.status.attempts)
    return {
        "python": environment.get("python"),
        **(environment.get("versions") or {}),
        "driver": driver.get("version"),
        "git_commit": git.get("sha"),
        "git_diff": f"digest {xxhash.xxh3_64_hexdigest(diff.encode(errors='replace'))}" if diff else None,
        "gpus": _describe_gpus(environment.get("gpus") or []),
        "cpus": environment.get("cpus"),
        "processes": ", ".join(world_sizes) or None,  # those of all attempts
        **{key: profile.get(key) for key in _PROFILE},
    }


def _describe_gpus(gpus: Sequence[Mapping[str, Any]]) -> str | None:
    names = [f"{gpu['name']} ({gpu['memory_gib']:g} GiB)" for gpu in gpus]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or None


def _read_metrics(found: Sequence[Overview]) -> dict[str, list[Any]]:
    """Return how far each run came: its newest evaluation, and its best one, with or without a checkpoint."""
    last = dict.fromkeys(key for run in found for key in run.brief.last or {} if key != "step")
    best = dict.fromkeys(f"best.{key}" for run in found for key in run.brief.best or {})
    rows = {key: [_find(run, key) for run in found] for key in (*_REACHED, *last, *best)}
    rows["best.checkpoint"] = [run.best_checkpoint and run.best_checkpoint.name for run in found]
    return {key: row for key, row in rows.items() if any(value is not None for value in row)}


def _find(overview: Overview, key: str) -> Any:
    try:
        return overview.find(key)
    except KeyError:
        return None
