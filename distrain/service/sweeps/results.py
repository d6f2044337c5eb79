"""Summarizes a sweep: its table, its best trial, and the mean and spread over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrain.config.metrics import METRICS
from distrain.service.sweeps.folder import SweepFolder
from distrain.service.sweeps.spec import SweepSpec
from distrain.service.sweeps.trial import Trial


@dataclass(frozen=True)
class Repeated:
    """A trial that was repeated with other seeds: the values of the repetitions, which have not chosen it."""

    number: int
    values: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation over the seeds; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {"number": self.number, "values": list(self.values), "mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found: `trials` in the order of their numbers, and `best`, the best that trained to its end.

    `repeats` are the repetitions of the best trials with other seeds; `is_over` is False after a stop.
    """

    path: Path
    spec: SweepSpec
    trials: Sequence[Trial]
    repeats: Sequence[Trial]
    is_over: bool = True

    @property
    def name(self) -> str:
        """The name of the sweep."""
        return self.path.name

    @property
    def metric(self) -> str:
        """The metric that is compared, such as `val/top1`."""
        return self.spec.metric or ""

    @property
    def sign(self) -> int:
        """1 where a higher value of the metric is better, else -1."""
        return read_sign(self.metric)

    @property
    def best(self) -> Trial | None:
        """The best trial: by the mean over seeds where the best were repeated, else by its value."""
        return find_best(self.trials, self.repeats, sign=self.sign)

    @property
    def best_recipe(self) -> Path:
        """The recipe of the best trial, a file that `distrain fit` takes."""
        return SweepFolder(self.path).best

    @property
    def repeated(self) -> list[Repeated]:
        """Mean and spread over seeds of the trials that were repeated, the best first."""
        return summarize_repeats(self.repeats, sign=self.sign)

    @property
    def importance(self) -> Mapping[str, float]:
        """How much of the variance of the metric each parameter explains, by fANOVA."""
        return SweepFolder(self.path).read_importance()

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object, as `distrain sweep --json` prints it."""
        best = self.best
        return {
            "sweep": self.name,
            "path": str(self.path),
            "metric": self.metric,
            "is_over": self.is_over,
            "trials": [trial.row() for trial in self.trials],
            "best": None if best is None else best.row(),
            "repeats": [one.as_json() for one in self.repeated],
            "importance": dict(self.importance),
        }


def read_result(folder: SweepFolder) -> SweepResult:
    """Read what a sweep has found so far; raises `RunError` where its files are damaged."""
    spec, trials, repeats = folder.read_spec(), folder.read_trials(), folder.read_repeats()
    is_over = len(trials) == spec.trials and all(trial.is_over for trial in [*trials, *repeats])
    return SweepResult(folder.path, spec, tuple(trials), tuple(repeats), is_over=is_over)


def read_sign(metric: str) -> int:
    """Return 1 where a higher value of a metric is better, else -1."""
    return 1 if METRICS[metric.removeprefix("val/").partition("/")[0]].is_higher_better else -1


def rank(trials: Sequence[Trial], *, sign: int) -> list[Trial]:
    """Return the trials that have trained to their end, the best first; of equal ones, that of the lower number."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    return sorted(finished, key=lambda trial: (-sign * (trial.value or 0.0), trial.number))


def find_best(trials: Sequence[Trial], repeats: Sequence[Trial], *, sign: int) -> Trial | None:
    """Return the best trial: once all repetitions are over by the mean over seeds, else by its own value."""
    if repeats and all(repeat.is_over for repeat in repeats) and (found := summarize_repeats(repeats, sign=sign)):
        return trials[found[0].number]
    return next(iter(rank(trials, sign=sign)), None)


def summarize_repeats(repeats: Sequence[Trial], *, sign: int) -> list[Repeated]:
    """Return mean and spread of the trials that were repeated, the best mean first."""
    values: dict[int, list[float]] = {}
    for repeat in repeats:
        if repeat.state == "finished" and repeat.value is not None:
            values.setdefault(repeat.number, []).append(repeat.value)
    found = [Repeated(number, each) for number, each in values.items()]
    return sorted(found, key=lambda one: (-sign * one.mean, one.number))
