"""The page that compares runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from distrain.config.metrics import OwnMetrics
from distrain.runs.comparison import MAX_RUNS, MIN_RUNS, Comparison, compare, find_best_columns
from distrain.runs.curves import list_keys
from distrain.runs.overview import read_each
from distrain.runs.value_formats import format_key, show_value
from distrain.service.web.pages.files import find_style_ids
from distrain.service.web.pages.run_view import better, group_keys
from distrain.service.web.rendering import render
from distrain.service.web.site import TheSite

router = APIRouter()


@dataclass(frozen=True)
class Line:
    """A row of a comparison; `best` are the positions of the best values."""

    key: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


@router.get("/compare")
def compare_runs(
    request: Request,
    site: TheSite,
    runs: Annotated[list[Annotated[str, Query(max_length=300)]], Query(max_length=10 * MAX_RUNS)] = [],  # noqa: B006
) -> HTMLResponse:
    """Show runs side by side, without those that cannot be read."""
    found = site.find_compared(runs)
    unreadable = [overview for overview in read_each(found) if overview.fault is not None]
    left_out = {overview.name for overview in unreadable} if len(found) - len(unreadable) >= MIN_RUNS else set()
    comparison = compare([run for run in found if run.path.name not in left_out])
    drawn: list[dict[str, Any]] = [
        {"name": one.name, "start": find_start(one.status.attempts), "keys": list_keys(one.run)}
        for one in comparison.runs
    ]
    keys = dict.fromkeys(key for run in drawn for key in run["keys"] if "/" in key)
    return render(
        request,
        "compare.html",
        overviews=comparison.runs,
        unreadable=unreadable,
        compared=drawn,
        tables=list_tables(comparison),
        groups=group_keys(list(keys)),
        better=partial(better, own=comparison.own_metrics),
        style_ids=find_style_ids(),
    )


def list_tables(comparison: Comparison) -> list[tuple[str, list[Line]]]:
    """Return the tables of a comparison with their titles: first where the recipes differ."""
    return [
        ("Recipe", [_values(key, values) for key, values in comparison.recipe.items()]),
        ("Environment", [_values(key, values) for key, values in comparison.environment.items()]),
        ("Results", [_metric(key, values, comparison.own_metrics) for key, values in comparison.metrics.items()]),
    ]


def find_start(attempts: Sequence[Any]) -> float | None:
    """Return when the first attempt of a run started; None where there was none."""
    return attempts[0].started if attempts else None


def _values(key: str, values: list[Any]) -> Line:
    return Line(key, tuple("" if value is None else show_value(value) for value in values))


def _metric(key: str, values: list[Any], own: OwnMetrics) -> Line:
    cells = tuple("" if value is None else format_key(key, value) for value in values)
    return Line(key, cells, frozenset(find_best_columns(key, values, own)))
