"""Puts a report together: `build_report`. Styles and script are in it, and nothing else is loaded or run."""

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from distrain.errors import RunError
from distrain.runs.comparison import MAX_RUNS, Comparison, compare, find_best_columns
from distrain.runs.curves import Curve, read_curves
from distrain.runs.directory import RunDirectory
from distrain.runs.facts import RunFacts, read_facts
from distrain.runs.value_formats import format_rows
from distrain.service.sweeps.folder import SweepFolder
from distrain.service.web.report.charts import Chart
from distrain.service.web.report.curves import POINTS, draw_comparison
from distrain.service.web.report.run_section import show_run
from distrain.service.web.template_environment import environment
from distrain.service.web.views.sweep_view import read_sweep_view

MARK = '<meta name="generator" content="distrain report">'  # by which a report is recognized, and may be replaced
_STATIC = Path(__file__).parents[1] / "static"
_STYLES = ("style.css", "report.css")
_SCRIPT = "report.js"
_HEAD_BYTES = 2048
_TITLES = {
    "trained": "What was trained on what",
    "curves": "Curves",
    "evaluations": "Evaluations",
    "samples": "Training samples",
    "attempts": "Attempts",
    "environment": "Environment",
    "again": "Make it again",
}


@dataclass(frozen=True)
class ComparisonSection:
    """What a report shows of several runs together: rows of values by key, one for each run."""

    recipe: Mapping[str, Sequence[str]]
    environment: Mapping[str, Sequence[str]]
    metrics: Mapping[str, Sequence[str]]
    best: Mapping[str, Sequence[int]]  # by metric: the numbers of the runs that are best
    charts: Sequence[Chart]


def build_report(runs: Sequence[RunDirectory]) -> bytes:
    """Return the report of 1 to `MAX_RUNS` different runs as HTML; raises `RunError` for one that cannot be read."""
    distinct = list({run.path.resolve(): run for run in runs}.values())
    if len(distinct) > MAX_RUNS:
        raise RunError(f"a report takes up to {MAX_RUNS} runs, not {len(distinct)}")
    found = [_read(run) for run in distinct]
    curves = [read_curves(run, points=POINTS).curves for run in distinct]
    sections = [
        show_run(facts, of_run, anchor=f"run-{number + 1}", style=number)
        for number, (facts, of_run) in enumerate(zip(found, curves, strict=True))
    ]
    comparison = None
    if len(distinct) > 1:
        named = [(section.name, of_run) for section, of_run in zip(sections, curves, strict=True)]
        comparison = _show_comparison(compare(distinct), named, best_by=found[0].overview.status.best_by)
    return _render("report.html", titles=_TITLES, runs=sections, comparison=comparison)


def _read(run: RunDirectory) -> RunFacts:
    facts = read_facts(run)
    if facts.overview.fault is not None:
        raise RunError(f"run {facts.overview.name} cannot be read: {facts.overview.fault}")
    return facts


def is_report(path: Path) -> bool:
    """Return whether a file is a report that distrain has written."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


def _show_comparison(
    comparison: Comparison, curves: Sequence[tuple[str, Mapping[str, Curve]]], *, best_by: str
) -> ComparisonSection:
    recipe, own = format_rows(comparison.recipe), comparison.own_metrics
    return ComparisonSection(
        recipe=recipe,
        environment=format_rows(comparison.environment),
        metrics=format_rows(comparison.metrics),
        best={key: find_best_columns(key, row, own) for key, row in comparison.metrics.items()},
        charts=draw_comparison(curves, best_by=best_by, by_epoch="data.batch_size" in recipe),
    )


def build_sweep_report(folder: SweepFolder) -> bytes:
    """Return the report of a sweep as HTML; raises `RunError` where it cannot be read."""
    best = folder.best.read_text(encoding="utf-8") if folder.best.is_file() else ""
    return _render("report_sweep.html", sweep=read_sweep_view(folder), best_recipe=best)


def _render(template: str, **context: Any) -> bytes:
    style = "\n".join((_STATIC / name).read_text(encoding="utf-8") for name in _STYLES)
    script = (_STATIC / _SCRIPT).read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        f"base-uri 'none'; form-action 'none'"
    )
    text = (
        environment()
        .get_template(template)
        .render(
            mark=Markup(MARK),
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            **context,
            time=time.strftime("%F %T %Z"),
            version=version("distrain"),
        )
    )
    return text.encode(errors="backslashreplace")  # names of files may hold bytes that are not text


def _hash(text: str) -> str:
    """Return the digest by which a Content-Security-Policy recognizes an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
