"""Lists runs as a table: their state, their evaluations, and the values in which their recipes differ."""

import json
import math
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from distrain.config.metrics import ALWAYS_MEASURED, METRICS, format_metric, format_value, score
from distrain.config.old_names import rename_keys
from distrain.errors import RecipeError, RunError
from distrain.runs import query
from distrain.runs.directory import RunDirectory
from distrain.runs.labels import Labels, read_labels
from distrain.runs.liveness import read_states
from distrain.runs.query import best_checkpoint, find_fault
from distrain.runs.status import Status
from distrain.system.display import Heading, duration, print_table

SORT_KEYS = ("start", "name", "state", "step", "best", "loss", "time")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as fast, where libyaml is installed


@dataclass(frozen=True)
class _Row:
    run: RunDirectory
    status: Status
    state: str
    recipe: dict[str, Any]  # its values by dotted key; empty where it cannot be read
    differences: str = ""
    tags: str = ""

    @property
    def best(self) -> dict[str, float] | None:
        """The best evaluation, if its checkpoint was kept."""
        return None if best_checkpoint(self.run, self.status) is None else self.status.best


def print_runs(console: Console, found: list[RunDirectory], root: Path) -> None:
    """Print a line for each run, and a sentence for each run that cannot be read."""
    if not found:
        console.print(f"no runs in {root.absolute()}; `distrain fit` starts one", markup=False, soft_wrap=True)
        return
    faults = {run.path: fault for run in found if (fault := find_fault(run)) is not None}
    rows = _read([run for run in found if run.path not in faults])
    if rows:
        print_table(console, *_table(rows))
    for path, fault in faults.items():
        console.print(f"{path.name} cannot be read: {fault}", markup=False, soft_wrap=True)


def sort_runs(found: list[RunDirectory], key: str) -> list[RunDirectory]:
    """Return the runs, which are ordered by `start`, in the order of one of `SORT_KEYS`.

    For `best` and `loss`, the best come first, and those without a value last. Raises `RunError` for any other key.
    """
    if key not in SORT_KEYS:
        raise RunError(f"--sort {key}: runs are sorted by {', '.join(SORT_KEYS[:-1])} or {SORT_KEYS[-1]}")
    if key == "start":
        return found
    statuses = {run.path: Status() if find_fault(run) else run.read_status() for run in found}

    def rank(run: RunDirectory) -> Any:
        status = statuses[run.path]
        if key in {"best", "loss"}:
            best = None if best_checkpoint(run, status) is None else status.best
            metrics, name = (best, status.best_by) if key == "best" else (status.last, ALWAYS_MEASURED)
            value = None if metrics is None else score(name, metrics)
            return math.inf if value is None else -value
        return {"name": run.path.name, "state": status.state, "step": status.step, "time": status.train_seconds}[key]

    return sorted(found, key=rank)


def summary(run: RunDirectory) -> dict[str, Any]:
    """Return the state of a run as a JSON object for scripts, with its labels, and the name of its recipe or None."""
    name = read_recipe_values(run).get("name")
    return query.summary(run) | {"recipe": None if name is None else str(name)} | find_labels(run).model_dump()


def find_labels(run: RunDirectory) -> Labels:
    """Return the labels of a run, empty where their file cannot be read."""
    with suppress(RunError, OSError):
        return read_labels(run)
    return Labels()


def _read(runs: list[RunDirectory]) -> list[_Row]:
    states = read_states(runs)
    rows = [_Row(run, run.read_status(), states[run.path], read_recipe_values(run)) for run in runs]
    by_name = defaultdict[Any, list[dict[str, Any]]](list)
    for row in rows:
        by_name[row.recipe.get("name")].append(row.recipe)
    keys = {name: _differing(recipes) for name, recipes in by_name.items()}
    return [
        replace(
            row,
            differences=_differences(row.recipe, keys[row.recipe.get("name")]),
            tags=" ".join(find_labels(row.run).tags),
        )
        for row in rows
    ]


def _table(rows: list[_Row]) -> tuple[list[Heading], list[list[str]]]:
    metrics = {row.status.best_by for row in rows if row.status.last is not None} or {"top1"}
    is_mixed = len(metrics) > 1  # then each value is shown with its metric
    newest = "newest" if is_mixed else METRICS[next(iter(metrics))].title
    format_cell = format_metric if is_mixed else format_value
    headings = [
        Heading("run"),
        Heading("state"),
        Heading("step", is_right=True),
        Heading(newest, 3, is_right=True),
        Heading("best", 1, is_right=True),
        Heading("val loss", 4, is_right=True),
        Heading("time", 5, is_right=True),
        Heading("recipe", 6),
        Heading("tags", 3),
        Heading("differs in", 2),
    ]
    cells = [
        [
            row.run.path.name,
            row.state,
            f"{row.status.step}/{row.status.total_steps}",
            *("-" if m is None else format_cell(row.status.best_by, m) for m in (row.status.last, row.best)),
            "-" if row.status.last is None else format_value(ALWAYS_MEASURED, row.status.last),
            duration(row.status.train_seconds),
            str(row.recipe.get("name", "-")),
            row.tags,
            row.differences,
        ]
        for row in rows
    ]
    if metrics == {ALWAYS_MEASURED}:  # it is already in the column of the newest value
        headings, cells = [h for h in headings if h.rank != 4], [[*row[:5], *row[6:]] for row in cells]
    kept = [column for column, cells_of in enumerate(zip(*cells, strict=True)) if any(cells_of)]  # no tags, differences
    return [headings[column] for column in kept], [[row[column] for column in kept] for row in cells]


def read_recipe_values(run: RunDirectory) -> dict[str, Any]:
    """Return the values of a run's recipe by dotted key; empty where it cannot be read."""
    with suppress(OSError, ValueError, yaml.YAMLError, RecipeError):
        tree = yaml.load(run.recipe.read_text(encoding="utf-8"), Loader=_LOADER)
        if isinstance(tree, dict):
            rename_keys(tree)
            return _flat(tree)
    return {}


def _flat(tree: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            values |= _flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def _differing(recipes: list[dict[str, Any]]) -> list[str]:
    """Return the keys whose values differ between the recipes that could be read, without those of logging."""
    readable = [recipe for recipe in recipes if recipe]
    keys = dict.fromkeys(key for recipe in readable for key in recipe)
    return [
        key
        for key in keys
        if not key.startswith("log.") and any(recipe.get(key) != readable[0].get(key) for recipe in readable)
    ]


def _differences(recipe: dict[str, Any], keys: list[str]) -> str:
    return " ".join(f"{key}={_shown(recipe.get(key))}" for key in keys) if recipe else ""


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
