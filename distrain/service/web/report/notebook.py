"""Draws runs for the output of a notebook's cell: state and curves as HTML and SVG, without a script."""

from pathlib import Path

from markupsafe import Markup

from distrain.config.recipe_text import describe_training
from distrain.runs.comparison import Comparison, find_best_columns
from distrain.runs.curves import read_curves
from distrain.runs.directory import RunDirectory
from distrain.runs.facts import read_facts
from distrain.runs.value_formats import format_rows
from distrain.service.web.report.curves import POINTS, draw_comparison, draw_run
from distrain.service.web.template_environment import environment
from distrain.service.web.views.summary import describe_outcome, find_faults

_STYLE = Path(__file__).parents[1] / "static" / "notebook.css"
_MAX_CHARTS = 4


def draw_notebook_run(run: RunDirectory) -> str:
    """Return the state of a run and the curves of its main metrics as HTML."""
    facts = read_facts(run)
    overview = facts.overview
    is_readable = overview.fault is None
    charts = draw_run(read_curves(run, points=POINTS).curves, best_by=overview.status.best_by) if is_readable else []
    return _render(
        "notebook_run.html",
        name=overview.name,
        state=overview.state,
        headline="" if facts.recipe is None else describe_training(facts.recipe, facts.profile),
        outcome=describe_outcome(facts) if is_readable else "",
        faults=find_faults(facts) if is_readable else [overview.fault],
        path=str(run.path.absolute()),
        charts=charts[:_MAX_CHARTS],
    )


def draw_notebook_comparison(comparison: Comparison) -> str:
    """Return where runs differ, what they have reached, and the curves of their main metrics as HTML."""
    curves = [(overview.name, read_curves(overview.run, points=POINTS).curves) for overview in comparison.runs]
    charts = draw_comparison(
        curves, best_by=comparison.runs[0].status.best_by, by_epoch="data.batch_size" in comparison.recipe
    )
    return _render(
        "notebook_comparison.html",
        names=[overview.name for overview in comparison.runs],
        tables={
            "recipe": format_rows(comparison.recipe),
            "environment": format_rows(comparison.environment),
            "reached": format_rows(comparison.metrics),
        },
        best={key: find_best_columns(key, row) for key, row in comparison.metrics.items()},
        charts=charts[:_MAX_CHARTS],
    )


def _render(template: str, **values: object) -> str:
    style = Markup(_STYLE.read_text(encoding="utf-8"))
    text = environment().get_template(template).render(style=style, **values)
    return text.encode(errors="backslashreplace").decode()  # names of files may hold bytes that are not text
