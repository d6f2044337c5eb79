"""Turns what is known about one run into what its part of a report shows: texts, rows of tables, charts."""

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distrain.config.metrics import ALWAYS_MEASURED, METRICS, format_value
from distrain.config.recipe_text import describe_processes, describe_recipe, describe_training
from distrain.messages import counted, joined
from distrain.runs.attempts import describe_preemptions
from distrain.runs.curves import Curve
from distrain.runs.facts import RunFacts
from distrain.runs.liveness import LIVE_STATES
from distrain.runs.query import repeat_command, resume_command
from distrain.runs.status import Status
from distrain.service.web.report.charts import Chart
from distrain.service.web.report.curves import draw_machines, draw_run
from distrain.service.web.report.evaluations import EvaluationView, show_evaluations
from distrain.service.web.report.pictures import SheetView, show_sheet
from distrain.service.web.report.tables import (
    Table,
    list_attempts,
    list_checkpoints,
    list_evaluations,
    list_skipped,
)
from distrain.system.display import duration

_LOG_LINES = 40
_MAX_CLASSES = 12  # named in the description of the data


@dataclass(frozen=True)
class Tile:
    """A key figure: its name, its value, and what it is about."""

    name: str
    value: str
    detail: str = ""


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
        outcome=_describe_outcome(facts),
        tags=overview.labels.tags,
        note=overview.labels.note,
        tiles=_show_tiles(facts),
        digests=_show_digests(status),
        faults=_find_faults(facts),
        notes=[*facts.notes, *_describe_interruptions(facts)],
        recipe=_describe_recipe(facts),
        evaluations=list_evaluations(facts.run.read_metrics(), status),
        charts=draw_run(curves, best_by=status.best_by),
        machine_charts=draw_machines(curves),
        details=show_evaluations(facts.run),
        sheet=show_sheet(facts.run),
        attempts=list_attempts(facts.attempts),
        tracebacks=[
            (f"attempt {number}", str(each.error["traceback"]))
            for number, each in enumerate(facts.attempts, start=1)
            if each.error is not None
        ],
        skipped=list_skipped(status),
        checkpoints=list_checkpoints(facts),
        environment=_describe_environment(facts),
        commands=_show_commands(facts, file),
        recipe_file=file,
        recipe_text=facts.recipe_text,
        recipe_href=f"data:application/yaml;base64,{base64.b64encode(text).decode()}",
        log=_read_log_tail(facts),
    )


def _describe_outcome(facts: RunFacts) -> str:
    """Return in a sentence how far the run came."""
    status, state = facts.overview.status, facts.overview.state
    trained = f"{counted(status.step, 'step')} in {duration(status.train_seconds)} of training"
    if state == "finished":
        text = f"Finished after {trained}"
    elif state in LIVE_STATES:
        left = f", about {duration(status.eta_s)} left" if status.eta_s else ""
        text = f"{state.capitalize()}: {trained}, of {status.total_steps:,}{left}"
    elif not status.attempts:
        return f"{state.capitalize()}: no step was trained yet."
    else:
        text = f"{state.capitalize()} at step {status.step:,} of {status.total_steps:,}, after {trained}"
    if status.last is None:
        return f"{text}; not evaluated yet."
    newest = f"{METRICS[status.best_by].title} {format_value(status.best_by, status.last)} at the newest evaluation"
    if status.best is None or status.best["step"] == status.last["step"]:
        return f"{text}: {newest}."
    best = f"{format_value(status.best_by, status.best)} at the best one, step {status.best['step']:,.0f}"
    return f"{text}: {newest}, {best}."


def _show_tiles(facts: RunFacts) -> list[Tile]:
    status = facts.overview.status
    tiles = []
    is_same = status.best is not None and status.last is not None and status.best["step"] == status.last["step"]
    for title, evaluation in (("Best", status.best), ("Newest", None if is_same else status.last)):
        if evaluation is not None:
            is_lost = title == "Best" and facts.overview.best_checkpoint is None
            detail = "not kept, step" if is_lost else "and newest, step" if is_same else "step"
            name = f"{title} {METRICS[status.best_by].title}"
            tiles.append(Tile(name, format_value(status.best_by, evaluation), f"{detail} {evaluation['step']:,.0f}"))
    if status.last is not None and status.best_by != ALWAYS_MEASURED:
        tiles.append(Tile("Validation loss", format_value(ALWAYS_MEASURED, status.last), "newest evaluation"))
    tiles.append(Tile("Steps", f"{status.step:,}", f"of {status.total_steps:,}" if status.total_steps else ""))
    tiles.append(Tile("Time of training", duration(status.train_seconds), "without start-up"))
    if facts.profile is not None:
        tiles.append(Tile("Trained on", describe_processes(facts.profile), _describe_gpus(facts.environment)))
    if len(facts.attempts) > 1:
        ended = [each.state for each in facts.attempts[:-1]]
        counts = [f"{ended.count(state)} {state}" for state in dict.fromkeys(ended)]
        tiles.append(Tile("Attempts", f"{len(facts.attempts):,}", ", ".join(counts)))
    return tiles


def _show_digests(status: Status) -> dict[str, str]:
    found = {"weights": status.weights_digest, "weights and optimizer": status.state_digest}
    return {f"digest of the {name}": digest for name, digest in found.items() if digest is not None}


def _find_faults(facts: RunFacts) -> list[str]:
    status, faults = facts.overview.status, []
    if facts.attempts and facts.overview.state in {"failed", "died"}:
        faults.append(f"The run {facts.overview.state}: {facts.attempts[-1].why}")
    if facts.job is not None and facts.job.fault:
        faults.append(facts.job.fault)
    return faults + status.diagnosis


def _describe_interruptions(facts: RunFacts) -> list[str]:
    """Return what preemptions mean for the result, where there were any."""
    recipe = facts.recipe
    text = None if recipe is None else describe_preemptions(facts.overview.status, lambda: recipe)
    return [] if text is None else [f"Preempted {text}."]


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


def _describe_environment(facts: RunFacts) -> dict[str, str]:
    """Return versions, devices and code."""
    environment = facts.environment
    rows = {
        "host": environment.get("host"),
        "platform": environment.get("platform"),
        "processors": environment.get("cpus"),
        "GPUs": _describe_gpus(environment) or None,
        "Python": environment.get("python"),
        **_items(environment.get("versions")),
        "NVIDIA driver": _items(environment.get("driver")).get("version"),
        "git commit": _describe_code(_items(environment.get("git"))),
    }
    return {name: str(value) for name, value in rows.items() if value is not None}


def _items(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _describe_code(git: Mapping[str, Any]) -> str | None:
    if "sha" not in git:
        return None
    changes = str(git.get("diff") or "").count("\n")
    return f"{git['sha']}, with {counted(changes, 'line')} of uncommitted differences" if changes else str(git["sha"])


def _describe_gpus(environment: Mapping[str, Any]) -> str:
    gpus = [gpu for gpu in environment.get("gpus") or [] if isinstance(gpu, dict)]
    names = [f"{gpu.get('name')} ({gpu.get('memory_gib')} GiB)" for gpu in gpus]
    return joined([f"{names.count(name)} x {name}" for name in dict.fromkeys(names)], last="and") if names else ""


def _show_commands(facts: RunFacts, file: str) -> dict[str, str]:
    """Return what makes the run again, resumes it and evaluates it, by what it is for."""
    path = shlex.quote(str(facts.run.path.absolute()))
    commands = {}
    if facts.recipe is not None and facts.profile is not None:
        commands["Train it again"] = repeat_command(facts.profile, file)
    if facts.overview.state != "finished":
        is_known = facts.profile is not None
        commands["Resume it"] = resume_command(facts.run) if is_known else f"distrain fit --run {path}"
    if facts.kept:
        commands["Evaluate it"] = f"distrain eval {path}"
        commands["Start another run from its weights"] = f"distrain fit {file} --set model.weights={path}"
    return commands | {"Look at it": f"distrain runs show {path}"}


def _read_log_tail(facts: RunFacts) -> str:
    try:
        with facts.run.log(0).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - (1 << 16)))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_LOG_LINES:])
