"""Makes the table of runs: which columns it has, what is in them, and the links that sort, filter and page."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from distrain.config.metrics import ALWAYS_MEASURED, format_metric, format_value, title_of
from distrain.errors import RunError
from distrain.runs.filters import matching
from distrain.runs.overview import Overview
from distrain.runs.recipe_values import Sections, differing_keys
from distrain.runs.sorting import sort_runs
from distrain.runs.value_formats import format_key
from distrain.system.display import duration

PAGE = 100  # runs
NEWEST_FIRST = "-start"
_MAX_DIFFERING = 6  # columns that nobody has chosen
_NEXT_CONDITION = re.compile(r"\s+(?=[\w./-]+\s*(?:<=|>=|!=|=|<|>))")
_OWN = {"state": "state", "step": "step", "newest": "newest", "best": "best", "loss": "val loss", "time": "time"}
_MORE = {"start": "start", "recipe": "recipe", "tags": "tags", "note": "note"}
_BEST_FIRST = {"best": "descending", "loss": "ascending"}  # the order of their values where the best come first
_OTHER_ORDER = {"ascending": "descending", "descending": "ascending"}
_NUMBERS = {"step", "newest", "best", "loss", "time"}


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """What a list of runs shows."""

    filter: str = ""  # conditions as those of `--filter`, with blanks between them
    sort: str = NEWEST_FIRST
    columns: tuple[str, ...] = ()  # keys, or none for the default
    page: int = 1

    @property
    def conditions(self) -> list[str]:
        """The single conditions of the filter."""
        return [part for part in _NEXT_CONDITION.split(self.filter.strip()) if part]

    @property
    def link(self) -> str:
        """The address of this list."""
        fields: list[tuple[str, str]] = [("filter", self.filter)] if self.filter else []
        fields += [("sort", self.sort)] if self.sort != NEWEST_FIRST else []
        fields += [("columns", key) for key in self.columns]
        fields += [("page", str(self.page))] if self.page > 1 else []
        return f"/?{urlencode(fields)}" if fields else "/"


@dataclass(frozen=True)
class Heading:
    """The heading of a column; `order` is that of the list if it is sorted by this column."""

    key: str
    title: str
    link: str
    order: str | None
    is_number: bool


@dataclass(frozen=True)
class Row:
    """A run in the list; the cells are those of the headings."""

    overview: Overview
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A page of the list of runs; `fault` says what is wrong with the request."""

    request: ListRequest
    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]
    num_matching: int
    num_runs: int
    choices: dict[str, str]  # what can be chosen as a column: titles by key
    fault: str | None

    @property
    def first(self) -> int:
        """The number of the first run of this page, counted from 1."""
        return (self.request.page - 1) * PAGE + 1

    @property
    def previous(self) -> str | None:
        """The address of the page before."""
        return None if self.request.page == 1 else replace(self.request, page=self.request.page - 1).link

    @property
    def next(self) -> str | None:
        """The address of the page after."""
        is_last = self.request.page * PAGE >= self.num_matching
        return None if is_last else replace(self.request, page=self.request.page + 1).link


def list_runs(everything: list[Overview], request: ListRequest) -> Listing:
    """Return the page of the runs, which are ordered by their start, that a request is for."""
    fault, found = None, everything
    try:
        found = sort_runs(matching(everything, request.conditions, option="filter"), request.sort, option="sort")
    except RunError as error:
        fault, found = str(error), []
    last_page = max(1, -(-len(found) // PAGE))
    request = replace(request, page=min(max(1, request.page), last_page))
    shown = found[(request.page - 1) * PAGE : request.page * PAGE]
    differing = find_differing(shown)
    titles = {**_OWN, **_MORE}
    keys = list(request.columns) or _default_columns(shown, differing)
    metrics = {overview.brief.best_by for overview in shown if overview.brief.last is not None}
    metric = next(iter(metrics)) if len(metrics) == 1 else None
    headings = tuple(_heading(key, titles, metric, request) for key in keys)
    rows = tuple(Row(one, tuple(format_cell(one, key, is_mixed=metric is None) for key in keys)) for one in shown)
    measured = dict.fromkeys(key for one in shown for key in one.brief.last or {} if key != "step")
    others = {key: key for key in (*differing, *measured, *request.columns)}
    return Listing(
        request=request,
        headings=headings,
        rows=rows,
        num_matching=len(found),
        num_runs=len(everything),
        choices={**others, **titles},
        fault=fault,
    )


def find_differing(shown: Sequence[Overview]) -> list[str]:
    """Return the keys in which the runs of one recipe differ from each other."""
    by_recipe = defaultdict[Any, list[Sections]](list)
    for overview in shown:
        by_recipe[overview.recipe_name].append(overview.sections)
    return list(dict.fromkeys(key for recipes in by_recipe.values() for key in differing_keys(recipes)))


def format_cell(overview: Overview, key: str, *, is_mixed: bool = False) -> str:
    """Return the value of a column as text, empty where the run has none; `is_mixed` names the metric with its value.

    An evaluation that does not have the metric of the others is shown as such.
    """
    brief = overview.brief
    if overview.fault is not None:
        return ""
    show = format_metric if is_mixed else format_value
    if key == "newest":
        return "" if brief.last is None else show(brief.best_by, brief.last)
    if key == "best":
        return "" if overview.best is None else show(brief.best_by, overview.best)
    if key == "loss":
        return "" if brief.last is None else format_value(ALWAYS_MEASURED, brief.last)
    if key == "step":
        return f"{brief.step:,} / {brief.total_steps:,}" if brief.total_steps else ""
    if key == "time":
        return duration(brief.train_seconds) if brief.train_seconds else ""
    try:
        value = overview.find(key)
    except KeyError:
        return ""
    return "" if value is None or value == [] else format_key(key, value)


def _default_columns(shown: Sequence[Overview], differing: Sequence[str]) -> list[str]:
    """Return the columns that nobody has chosen: those that differ, and of tags only if there are some."""
    recipes = {overview.recipe_name for overview in shown}
    keys = [*_OWN, *(["recipe"] if len(recipes) > 1 else []), *differing[:_MAX_DIFFERING]]
    if any(overview.labels.tags for overview in shown):
        keys.append("tags")
    return keys


def _heading(key: str, titles: dict[str, str], metric: str | None, request: ListRequest) -> Heading:
    title = titles.get(key, key)
    sort_key = key
    if key == "newest":
        title, sort_key = (title_of(metric), f"val/{metric}") if metric else (title, "best")
    first = _BEST_FIRST.get(sort_key, "ascending")
    order = {sort_key: first, f"-{sort_key}": _OTHER_ORDER[first]}.get(request.sort)
    if key == "newest" and sort_key == "best":
        order = None  # which is that of the column of the best
    sort = f"-{sort_key}" if request.sort == sort_key else sort_key
    link = replace(request, sort=sort, page=1).link
    return Heading(key, title, link, order, key in _NUMBERS or key.startswith(("val/", "best.", "train/")))
