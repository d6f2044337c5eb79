"""Lists a run's checkpoints without reading tensors: step, size, age, evaluation, and which is best."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distrain.config.metrics import restore_nan, score
from distrain.errors import RunError
from distrain.runs.checkpoints.paths import STATE, committed, step_of
from distrain.system.files import read_regular

Metrics = dict[str, float]


@dataclass(frozen=True)
class Entry:
    """A committed checkpoint; `evaluation` has the metrics of the evaluation at its step, if there was one.

    `score` is the value of the metric that selects the best evaluation, with the sign that makes higher better.
    `run_best` is the step of the best evaluation up to this checkpoint, whether or not its checkpoint was kept.
    """

    path: Path
    step: int
    num_bytes: int
    written: float  # seconds since the epoch
    evaluation: Metrics | None
    score: float | None
    run_best: int | None = None


def read_catalog(folder: Path) -> list[Entry]:
    """Return the committed checkpoints below `folder`, the oldest first; their content is not verified."""
    entries: list[Entry] = []
    for path in committed(folder):
        with suppress(FileNotFoundError):  # a running training has just deleted it
            evaluation, score, run_best = _read_evaluation(path)
            entries.append(
                Entry(
                    path=path,
                    step=step_of(path),
                    num_bytes=sum(file.lstat().st_size for file in path.iterdir()),
                    written=path.stat().st_mtime,
                    evaluation=evaluation,
                    score=score,
                    run_best=run_best,
                )
            )
    return entries


def best_step(scores: list[tuple[int, float | None]]) -> int | None:
    """Return the step with the highest score, the first of equal ones; None where no step has a score."""
    ranked = [(-score, step) for step, score in scores if score is not None]
    return min(ranked)[1] if ranked else None


def strongest(entries: list[Entry]) -> Entry | None:
    """Return the entry with the highest score, the first of equal ones; the run may have had a better evaluation."""
    step = best_step([(entry.step, entry.score) for entry in entries])
    return next((entry for entry in entries if entry.step == step), None)


def run_best_step(entries: list[Entry]) -> int | None:
    """Return the step of the run's best evaluation according to its newest checkpoint; None where there was none."""
    return next((entry.run_best for entry in reversed(entries) if entry.run_best is not None), None)


def find_best(entries: list[Entry]) -> Entry | None:
    """Return the checkpoint of the run's best evaluation; None where it was not kept, or there was none."""
    step = run_best_step(entries)
    return next((entry for entry in entries if entry.step == step), None)


def choose(folder: Path, which: str) -> Path:
    """Return the checkpoint named by `which`: a step, `best` or `last`; raises `RunError` where there is none."""
    entries = read_catalog(folder)
    if not entries:
        raise RunError(f"there is no checkpoint in {folder}")
    steps = ", ".join(str(entry.step) for entry in entries)
    best = find_best(entries)
    if which == "best" and best is None:
        if (step := run_best_step(entries)) is not None:
            raise RunError(f"the best evaluation, at step {step}, has no checkpoint in {folder}; use last, or {steps}")
        why = "had a finite evaluation" if any(entry.evaluation for entry in entries) else "was evaluated"
        raise RunError(f"no checkpoint in {folder} {why}, so there is no best one; use last, or {steps}")
    chosen = {"best": str(best and best.step), "last": str(entries[-1].step)}.get(which, which)
    for entry in entries:
        if str(entry.step) == chosen:
            return entry.path
    raise RunError(f"there is no checkpoint {which!r} in {folder}; use best, last, or one of {steps}")


def _read_evaluation(path: Path) -> tuple[Metrics | None, float | None, int | None]:
    """Return the metrics of the evaluation at a checkpoint's step, its score, and the step of the run's best one."""
    run_best = None
    try:
        state = json.loads(read_regular(path / STATE))
        if state.get("best") is not None:
            run_best = int(state["best"]["step"])
        evaluation = {n: float(value) for n, value in restore_nan(state["evaluation"]).items() if n != "step"}
        return evaluation, score(state["best_by"], evaluation, state.get("own_metrics", {})), run_best
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # damaged, or not evaluated
        return None, None, run_best
