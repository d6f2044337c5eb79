"""Ranks runs by a metric: the best of their checkpoints first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distrain.config.metrics import METRICS, OwnMetrics, is_higher_better, is_number, score
from distrain.errors import RunError
from distrain.messages import joined, nearest
from distrain.runs import checkpoints
from distrain.runs.overview import Overview


@dataclass(frozen=True)
class RankedRun:
    """A run with the best of its checkpoints: the value of the metric `val/NAME`, the step, and the folder."""

    overview: Overview
    metric: str
    value: float
    step: int
    checkpoint: Path


def rank(found: Sequence[Overview], metric: str | None) -> list[RankedRun]:
    """Return the runs that have a checkpoint with this metric, such as `val/top1` or `top1`, the best run first.

    Only evaluations whose checkpoint was kept count, and none that is not finite. The default is the metric by which
    the runs themselves select their best evaluation. Raises `RunError` for an unknown metric, and where the runs select
    by different ones.
    """
    name = _own_metric(found) if metric is None else _name(metric, found)
    ranked = [(best, run) for run in found if (best := _best(run, name)) is not None]
    ranked.sort(key=lambda pair: -pair[0][0])
    return [
        RankedRun(run, f"val/{name}", evaluation[f"val/{name}"], step, path)
        for (_, step, path, evaluation), run in ranked
    ]


def _own_metric(found: Sequence[Overview]) -> str:
    names = sorted({run.brief.best_by for run in found if run.brief.best is not None})
    if len(names) > 1:
        keys = [f"val/{name}" for name in names]
        raise RunError(f"these runs select their best evaluations by {joined(keys, last='and')}; choose with --metric")
    return names[0] if names else "top1"


def _name(metric: str, found: Sequence[Overview]) -> str:
    """Return a metric without `val/`; one of a class, such as `top1/ants`, is as good as the metric itself."""
    name = metric.removeprefix("val/")
    base = name.partition("/")[0]
    is_known = any(is_higher_better(base, run.brief.own_metrics) is not None for run in found) or base in METRICS
    if not is_known or not (is_number(base) or "/" in name):
        own = [name for run in found for name in run.brief.own_metrics]
        known = [f"val/{name}" for name in dict.fromkeys((*METRICS, *own)) if is_number(name)]
        raise RunError(f"--metric {metric} is not a metric of evaluations{nearest(f'val/{name}', known)}")
    return name


def _best(run: Overview, name: str) -> tuple[float, int, Path, Mapping[str, float]] | None:
    """Return score, step, folder and evaluation of the run's best checkpoint by a metric; None where it has none."""
    brief = run.brief
    if brief.best is not None and run.best_checkpoint is not None and brief.best_by == name:
        value = _score(name, brief.best, brief.own_metrics)
        return None if value is None else (value, int(brief.best["step"]), run.best_checkpoint, brief.best)
    if brief.last is None:
        return None
    scored = [
        (value, entry.step, entry.path, entry.evaluation)
        for entry in checkpoints.read_catalog(run.run.checkpoints)
        if entry.evaluation is not None and (value := _score(name, entry.evaluation, brief.own_metrics)) is not None
    ]
    return max(scored, key=lambda found: (found[0], -found[1]), default=None)


def _score(name: str, evaluation: Mapping[str, float], own: OwnMetrics) -> float | None:
    base = name.partition("/")[0]
    return score(base, {**evaluation, f"val/{base}": evaluation.get(f"val/{name}", math.nan)}, own)
