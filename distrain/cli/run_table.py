"""Lists runs as a table: their state, their evaluations and where their recipes differ, or the columns of the user."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from distrain.config.metrics import ALWAYS_MEASURED, format_metric, format_value, title_of
from distrain.runs.overview import Overview, find_values
from distrain.runs.ranking import RankedRun
from distrain.runs.recipe_values import Sections, differing_keys, find_value
from distrain.runs.value_formats import format_key, show_value
from distrain.system.display import Heading, duration, print_table


def print_runs(console: Console, found: Sequence[Overview], root: Path, *, columns: Sequence[str] = ()) -> None:
    """Print a line for each run, with these `columns` if any are given, and a sentence for each unreadable run."""
    if not found:
        console.print(f"no runs in {root.absolute()}; `distrain fit` starts one", markup=False, soft_wrap=True)
        return
    readable = [overview for overview in found if overview.fault is None]
    if readable:
        print_table(console, *(_own_table(readable, columns) if columns else _table(readable)))
    for overview in found:
        if overview.fault is not None:
            console.print(f"{overview.name} cannot be read: {overview.fault}", markup=False, soft_wrap=True)


def _own_table(found: Sequence[Overview], columns: Sequence[str]) -> tuple[list[Heading], list[list[str]]]:
    shown = {key: find_values(found, key, option="--columns") for key in dict.fromkeys(columns)}
    shown.pop("name", None)  # the first column
    cells = [[overview.name] for overview in found]
    headings = [Heading("run")]
    for key, values in shown.items():
        headings.append(Heading(key, is_right=all(isinstance(value, int | float | None) for value in values)))
        for row, value in zip(cells, values, strict=True):
            row.append(format_key(key, value))
    return headings, cells


def print_ranked(console: Console, ranked: Sequence[RankedRun]) -> None:
    """Print a line for each run with its best checkpoint."""
    headings = [Heading("run"), Heading(ranked[0].metric, is_right=True), Heading("step", is_right=True)]
    cells = [[r.overview.name, format_key(r.metric, r.value), str(r.step), str(r.checkpoint)] for r in ranked]
    print_table(console, [*headings, Heading("checkpoint")], cells)


def describe_ranked(ranked: Sequence[RankedRun]) -> list[dict[str, Any]]:
    """Return runs with their best checkpoints as JSON objects."""
    return [
        {
            "run": str(each.overview.run.path),
            "name": each.overview.name,
            "metric": each.metric,
            "value": each.value,
            "step": each.step,
            "checkpoint": str(each.checkpoint),
        }
        for each in ranked
    ]


def _table(rows: Sequence[Overview]) -> tuple[list[Heading], list[list[str]]]:
    metrics = {row.brief.best_by for row in rows if row.brief.last is not None} or {"top1"}
    is_mixed = len(metrics) > 1  # then each value is shown with its metric
    newest = "newest" if is_mixed else title_of(next(iter(metrics)))
    format_cell = format_metric if is_mixed else format_value
    by_recipe = defaultdict[Any, list[Sections]](list)
    for row in rows:
        by_recipe[row.recipe_name].append(row.sections)
    keys = {name: differing_keys(recipes) for name, recipes in by_recipe.items()}
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
            row.name,
            row.state,
            f"{row.brief.step}/{row.brief.total_steps}",
            *("-" if m is None else format_cell(row.brief.best_by, m) for m in (row.brief.last, row.best)),
            "-" if row.brief.last is None else format_value(ALWAYS_MEASURED, row.brief.last),
            duration(row.brief.train_seconds),
            "-" if row.recipe_name is None else str(row.recipe_name),
            " ".join(row.labels.tags),
            _differences(row.sections, keys[row.recipe_name]),
        ]
        for row in rows
    ]
    if metrics == {ALWAYS_MEASURED}:  # it is already in the column of the newest value
        headings, cells = [h for h in headings if h.rank != 4], [[*row[:5], *row[6:]] for row in cells]
    kept = [column for column, cells_of in enumerate(zip(*cells, strict=True)) if any(cells_of)]  # no tags, differences
    return [headings[column] for column in kept], [[row[column] for column in kept] for row in cells]


def _differences(recipe: Sections, keys: list[str]) -> str:
    return " ".join(f"{key}={show_value(find_value(recipe, key))}" for key in keys) if recipe else ""
