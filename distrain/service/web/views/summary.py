"""Describes a run as texts: how far it came, its key figures, its environment, and the commands that use it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distrain.config.metrics import ALWAYS_MEASURED, format_value, title_of
from distrain.config.recipe_text import describe_processes
from distrain.messages import counted, joined
from distrain.runs.attempts import describe_preemptions
from distrain.runs.facts import RunFacts
from distrain.runs.liveness import LIVE_STATES
from distrain.runs.query import resume_command
from distrain.runs.status import Status
from distrain.system.display import duration


@dataclass(frozen=True)
class Tile:
    """A key figure: its name, its value, and what it is about."""

    name: str
    value: str
    detail: str = ""


def describe_outcome(facts: RunFacts) -> str:
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
    newest = f"{title_of(status.best_by)} {format_value(status.best_by, status.last)} at the newest evaluation"
    if status.best is None or status.best["step"] == status.last["step"]:
        return f"{text}: {newest}."
    best = f"{format_value(status.best_by, status.best)} at the best one, step {status.best['step']:,.0f}"
    return f"{text}: {newest}, {best}."


def show_tiles(facts: RunFacts) -> list[Tile]:
    """Return the key figures of the run: its evaluations, steps, time and processes."""
    status = facts.overview.status
    tiles = []
    is_same = status.best is not None and status.last is not None and status.best["step"] == status.last["step"]
    for title, evaluation in (("Best", status.best), ("Newest", None if is_same else status.last)):
        if evaluation is not None:
            is_lost = title == "Best" and facts.overview.best_checkpoint is None
            detail = "not kept, step" if is_lost else "and newest, step" if is_same else "step"
            name = f"{title} {title_of(status.best_by)}"
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


def show_digests(status: Status) -> dict[str, str]:
    """Return the digests by which the result can be recognized, by what they are of."""
    found = {"weights": status.weights_digest, "weights and optimizer": status.state_digest}
    return {f"digest of the {name}": digest for name, digest in found.items() if digest is not None}


def find_faults(facts: RunFacts) -> list[str]:
    """Return why the run failed, and what slows it down."""
    status, faults = facts.overview.status, []
    if facts.attempts and facts.overview.state in {"failed", "died"}:
        faults.append(f"The run {facts.overview.state}: {facts.attempts[-1].why}")
    if facts.job is not None and facts.job.fault:
        faults.append(facts.job.fault)
    return faults + status.diagnosis


def describe_interruptions(facts: RunFacts) -> list[str]:
    """Return what preemptions mean for the result, where there were any."""
    recipe = facts.recipe
    text = None if recipe is None else describe_preemptions(facts.overview.status, lambda: recipe)
    return [] if text is None else [f"Preempted {text}."]


def describe_environment(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return versions, devices and code of what `env.json` has."""
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


def show_commands(facts: RunFacts) -> dict[str, str]:
    """Return the commands that resume the run, evaluate it and look at it, by what they are for."""
    run, path = facts.run, shlex.quote(str(facts.run.path.absolute()))
    commands = {}
    if facts.overview.fault is None and facts.overview.state != "finished":
        is_known = facts.profile is not None
        commands["Resume it"] = resume_command(run) if is_known else f"distrain fit --run {path}"
    if facts.kept:
        commands["Evaluate it"] = f"distrain eval {path}"
    commands["Look at it"] = f"distrain runs show {path}"
    if run.log(0).exists():
        commands["Read its log"] = f"distrain logs {path}"
    if run.tensorboard.is_dir():
        commands["Look at its curves"] = f"tensorboard --logdir {shlex.quote(str(run.tensorboard.absolute()))}"
    return commands


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
