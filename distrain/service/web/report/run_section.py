"""Turns what is known about one run into what its part of a report shows: texts, rows of tables, charts."""

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distrain.config.recipe_text import describe_processes, describe_recipe, describe_training
from distrain.messages import counted
from distrain.runs.curves import Curve
from distrain.runs.facts import RunFacts
from distrain.runs.query import repeat_command
from distrain.service.web.report.charts import Chart
from distrain.service.web.report.curves import draw_machines, draw_run
from distrain.service.web.views.evaluations import EvaluationView, show_evaluations
from distrain.service.web.views.pictures import SheetView, embed_picture, show_sheet
from distrain.service.web.views.summary import (
    Tile,
    describe_environment,
    describe_interruptions,
    describe_outcome,
    find_faults,
    show_commands,
    show_digests,
    show_tiles,
)
from distrain.service.web.views.tables import (
    Table,
    list_attempts,
    list_checkpoints,
    list_evaluations,
    list_skipped,
)

_LOG_LINES = 40
_MAX_CLASSES = 12  # named in the description of the data


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """What a report shows of one run."""

    anchor: str
    style: int  # of its lines, in a comparison
    name: str
    path: str
    state: str
    headline: str
    outcome: str
    tags: Sequence[str]
    note: str
    tiles: Sequence[Tile]
    digests: Mapping[str, str]  # by which the result can be recognized
    faults: Sequence[str]  # why it failed, and what slows it down
    notes: Sequence[str]
    recipe: Mapping[str, str]
    evaluations: Table | None
    charts: Sequence[Chart]
    machine_charts: Sequence[Chart]
    details: Sequence[EvaluationView]
    sheet: SheetView | None
    attempts: Table | None
    tracebacks: Sequence[tuple[str, str]]  # of which attempt, and the text
    skipped: Table | None
    checkpoints: Table | None
    environment: Mapping[str, str]
    commands: Mapping[str, str]
    recipe_file: str
    recipe_text: str
    recipe_href: str
    log: str


def show_run(facts: RunFacts, curves: Mapping[str, Curve], *, anchor: str, style: int) -> RunSection:
    """Return the section of a run."""
    status, overview = facts.overview.status, facts.overview
    recipe_name = facts.recipe.name if facts.recipe is not None else "recipe"
    file = f"{recipe_name}.yaml"
    text = facts.recipe_text.encode(errors="backslashreplace")
    return RunSection(
        anchor=anchor,
        style=style,
        name=overview.name,
        path=str(facts.run.path.absolute()),
        state=overview.state,
        headline="" if facts.recipe is None else describe_training(facts.recipe, facts.profile),
        outcome=describe_outcome(facts),
        tags=overview.labels.tags,
        note=overview.labels.note,
        tiles=show_tiles(facts),
        digests=show_digests(status),
        faults=find_faults(facts),
        notes=[*facts.notes, *describe_interruptions(facts)],
        recipe=_describe_recipe(facts),
        evaluations=list_evaluations(facts.run.read_metrics(), status),
        charts=draw_run(curves, best_by=status.best_by),
        machine_charts=draw_machines(curves),
        details=show_evaluations(facts.run, embed_picture),
        sheet=show_sheet(facts.run, embed_picture),
        attempts=list_attempts(facts.attempts),
        tracebacks=[
            (f"attempt {number}", str(each.error["traceback"]))
            for number, each in enumerate(facts.attempts, start=1)
            if each.error is not None
        ],
        skipped=list_skipped(status),
        checkpoints=list_checkpoints(facts),
        environment=describe_environment(facts.environment),
        commands=_show_commands(facts, file),
        recipe_file=file,
        recipe_text=facts.recipe_text,
        recipe_href=f"data:application/yaml;base64,{base64.b64encode(text).decode()}",
        log=_read_log_tail(facts),
    )


def _describe_recipe(facts: RunFacts) -> dict[str, str]:
    """Return the recipe by subject, with what the newest checkpoint and the profile add to it."""
    rows = {} if facts.recipe is None else describe_recipe(facts.recipe)
    data = facts.data
    if data.classes:
        names = ", ".join(data.classes[:_MAX_CLASSES]) + (", ..." if len(data.classes) > _MAX_CLASSES else "")
        rows["classes"] = f"{len(data.classes):,}: {names}"
    if len(data.image_shape) == 3:
        channels, height, width = data.image_shape
        rows["images"] = f"{width} x {height} pixels, {counted(channels, 'channel')}"
    if data.samples_seen is not None:
        rows["samples"] = (
            f"{counted(data.samples_seen, 'training sample')} seen up to step {data.step:,}, with repetition"
        )
    if facts.profile is not None:
        nodes = f" on {counted(facts.profile.nodes, 'node')}" if facts.profile.nodes > 1 else ""
        threads = f"{counted(facts.profile.threads, 'thread')} each"
        rows["processes"] = f"{describe_processes(facts.profile)}{nodes}, {threads}, launcher {facts.profile.launcher}"
    return rows


def _show_commands(facts: RunFacts, file: str) -> dict[str, str]:
    """Return what makes the run again from the recipe in `file`, and uses it, by what it is for."""
    commands = show_commands(facts)
    if facts.kept:
        path = shlex.quote(str(facts.run.path.absolute()))
        commands["Start another run from its weights"] = f"distrain fit {file} --set model.weights={path}"
    if facts.recipe is None or facts.profile is None:
        return commands
    return {"Train it again": repeat_command(facts.profile, file), **commands}


def _read_log_tail(facts: RunFacts) -> str:
    try:
        with facts.run.log(0).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - (1 << 16)))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_LOG_LINES:])
