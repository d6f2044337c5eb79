"""Finds, lists and compares runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrain.api.run import Run
from distrain.launchers.prepare import RUNS
from distrain.runs import query
from distrain.runs.comparison import Comparison, compare
from distrain.runs.filters import matching
from distrain.runs.overview import read_overviews
from distrain.runs.sorting import sort_runs
from distrain.runs.value_formats import format_rows
from distrain.system.display import Heading, table_lines

AnyRun = Run | str | Path


@dataclass(frozen=True)
class RunComparison:
    """Where runs differ: values by key, one for each run in the order of `runs`, None where a run has no value.

    `recipe` and `environment` have only the keys whose values differ; `metrics` is what each run has reached.
    """

    runs: list[Run]
    _comparison: Comparison

    @property
    def recipe(self) -> Mapping[str, Sequence[Any]]:
        """The values of the recipes that differ."""
        return self._comparison.recipe

    @property
    def environment(self) -> Mapping[str, Sequence[Any]]:
        """Versions, code, devices and processes that differ."""
        return self._comparison.environment

    @property
    def metrics(self) -> Mapping[str, Sequence[Any]]:
        """State, step, time, and the newest and the best evaluation."""
        return self._comparison.metrics

    def __repr__(self) -> str:
        headings = [Heading(""), *(Heading(run.name) for run in self.runs)]
        parts = (self.recipe, self.environment, self.metrics)
        rows = [[key, *row] for part in parts for key, row in format_rows(part).items()]
        return "\n".join(table_lines(headings, rows, None))

    def _repr_html_(self) -> str:
        from distrain.service.web.report.notebook import draw_notebook_comparison

        return draw_notebook_comparison(self._comparison)


def open_run(path: str | Path, root: str | Path = RUNS) -> Run:
    """Open a run by its path, its name below `root` or the beginning of it; `last` is the newest.

    Raises `RunError` where no run or several runs match.

    >>> distrain.open_run("last").status.state
    'finished'
    """
    return Run(query.find_run(str(path), Path(root)))


def list_runs(
    filter: str | Sequence[str] = (),  # noqa: A002 - as the option of the command line
    sort: str = "start",
    *,
    root: str | Path = RUNS,
) -> list[Run]:
    """Return the runs directly below `root` for which all conditions hold, in ascending order of a key.

    `filter` is a condition such as `state=finished`, `tag=baseline` or `optimizer.lr<0.1`, or several; `sort` is
    `start`, `best`, `loss` (these two the best first), or any key of `distrain runs --columns`, with `-` before it for
    the opposite order. Raises `RunError` for a key that no run has.

    >>> [run.status.step for run in distrain.list_runs("state=finished", sort="-start")]
    [40, 20]
    """
    filters = [filter] if isinstance(filter, str) else list(filter)
    found = sort_runs(matching(read_overviews(Path(root)), filters, option="filter"), sort, option="sort")
    return [Run(overview.run) for overview in found]


def compare_runs(*runs: AnyRun, root: str | Path = RUNS) -> RunComparison:
    """Compare 2 to 20 runs: where their recipes and environments differ, and what they have reached.

    Each is a `Run`, or what `open_run` takes. Raises `RunError` for another number.

    >>> comparison = distrain.compare_runs(*distrain.list_runs())
    >>> comparison.recipe["train.max_steps"]
    [20, 40]
    >>> comparison.metrics["state"]
    ['finished', 'finished']
    """
    comparison = compare([query.find_run(os.fspath(run), Path(root)) for run in runs])
    return RunComparison([Run(overview.run) for overview in comparison.runs], comparison)
