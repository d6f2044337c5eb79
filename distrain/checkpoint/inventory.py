"""Owns what is known of a run's checkpoints without reading a tensor: step, size, age, evaluation, which is best."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distrain.checkpoint.folder import STATE, committed, step_of
from distrain.errors import RunError
from distrain.metrics import score

Metrics = dict[str, float]


@dataclass(frozen=True)
class Entry:
    """One committed checkpoint; `evaluation` holds the metrics of the evaluation at its step, if there was one.

    `score` says by how much that is good, higher is better, as the run judges its evaluations.
    """

    path: Path
    step: int
    num_bytes: int
    written: float  # seconds since the epoch
    evaluation: Metrics | None
    score: float | None


def take_inventory(folder: Path) -> list[Entry]:
    """Return the committed checkpoints below `folder`, the oldest first; nothing in them is verified."""
    entries: list[Entry] = []
    for path in committed(folder):
        with suppress(FileNotFoundError):  # a training has deleted it just now
            evaluation, score = _read_evaluation(path)
            entries.append(
                Entry(
                    path=path,
                    step=step_of(path),
                    num_bytes=sum(file.stat().st_size for file in path.iterdir()),
                    written=path.stat().st_mtime,
                    evaluation=evaluation,
                    score=score,
                )
            )
    return entries


def best_step(scores: list[tuple[int, float | None]]) -> int | None:
    """Return the step with the highest score, the first of equals; None where no step has one."""
    ranked = [(-score, step) for step, score in scores if score is not None]
    return min(ranked)[1] if ranked else None


def choose(folder: Path, which: str) -> Path:
    """Return the checkpoint that `which` names: a step, `best` or `last`; raises `RunError` where there is none."""
    entries = take_inventory(folder)
    if not entries:
        raise RunError(f"there is no checkpoint in {folder}")
    best = best_step([(entry.step, entry.score) for entry in entries])
    if which == "best" and best is None:
        raise RunError(f"no checkpoint in {folder} was evaluated, so none is the best; take `last` or a step")
    wanted = {"best": str(best), "last": str(entries[-1].step)}.get(which, which)
    for entry in entries:
        if str(entry.step) == wanted:
            return entry.path
    steps = ", ".join(str(entry.step) for entry in entries)
    raise RunError(f"there is no checkpoint {which!r} in {folder}; take best, last, or one of {steps}")


def _read_evaluation(path: Path) -> tuple[Metrics | None, float | None]:
    """Return the metrics of the evaluation at a checkpoint's step, and its score."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        evaluation = {str(name): float(value) for name, value in state["evaluation"].items() if name != "step"}
        return evaluation, score(state["best_by"], evaluation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged, or not evaluated at this step
        return None, None
