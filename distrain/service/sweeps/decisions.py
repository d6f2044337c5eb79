"""Decides what a sweep does next: a pure function of its spec and its trials, in whatever order their runs end.

In a reproducible sweep, trial n depends on what trials up to n - lag have reached, and on nothing else:

- Without pruning, and with `median`, these trials are over before trial n is suggested.
- With `asha`, trial n is suggested from their values at the first rung. What they reached later counts if their cohort
  lies two before that of trial n, and is over: so the last trials of a cohort train beside the first of the next one.
- Which trials of a cohort are promoted is decided when all have reached the rung, by value, then by number.

A sweep that is not reproducible uses whatever is known, and waits for no trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distrain.service.sweeps.rungs import (
    is_worse_than_median,
    members,
    promotable,
    promoted,
    read_cohort,
)
from distrain.service.sweeps.spec import SweepSpec
from distrain.service.sweeps.trial import Trial


@dataclass(frozen=True)
class Decision:
    """What to do now: trials to resume from a rung, by number with the rung at which they pause next, and to prune."""

    promote: Mapping[int, int]
    prune: Sequence[int]
    suggest: bool  # whether the next trial can be suggested


@dataclass(frozen=True)
class Known:
    """What a suggestion may use of an earlier trial: its values at rungs, and its final one; running without both."""

    trial: Trial
    rungs: Sequence[float | None] = ()
    value: float | None = None
    is_running: bool = False


def decide(spec: SweepSpec, trials: Sequence[Trial], *, sign: int) -> Decision:
    """Decide what is promoted, what is pruned, and whether the next trial can be suggested.

    `sign` is 1 where a higher value of the metric is better, else -1.
    """
    number = len(trials)
    suggest = number < (spec.trials or 0) and (not spec.reproducible or _may_suggest(spec, trials, number))
    if spec.prune != "asha":
        return Decision({}, [], suggest)
    if not spec.reproducible:
        return _decide_asynchronously(spec, trials, sign=sign, suggest=suggest)
    promote, prune = dict[int, int](), list[int]()
    for cohort, size in enumerate(spec.cohorts):
        group = [trials[place] for place in members(spec.cohorts, cohort) if place < number]
        for rung in range(len(spec.rungs or ())):
            kept = promoted(group, rung, size=size, sign=sign)
            if kept is None:
                break
            for trial in group:
                if trial.state == "paused" and len(trial.rungs) == rung + 1:
                    if trial.number in kept:
                        promote[trial.number] = rung + 1
                    else:
                        prune.append(trial.number)
    return Decision(promote, prune, suggest)


def _decide_asynchronously(spec: SweepSpec, trials: Sequence[Trial], *, sign: int, suggest: bool) -> Decision:
    """Promote what is among the best third so far; at the end of the sweep, prune what waits."""
    stages = range(len(spec.rungs or ()))
    promote = {number: rung + 1 for rung in stages for number in promotable(trials, rung, sign=sign)}
    if promote or len(trials) < (spec.trials or 0) or any(trial.is_active for trial in trials):
        return Decision(promote, [], suggest)
    waiting = [trial for trial in trials if trial.state == "paused"]
    if waiting and not any(trial.state == "finished" for trial in trials):  # at least one trains to its end
        best = max(waiting, key=lambda trial: (len(trial.rungs), sign * (trial.value or 0.0), -trial.number))
        return Decision({best.number: len(best.rungs)}, [], suggest)
    return Decision({}, [trial.number for trial in waiting], suggest)


def must_prune(spec: SweepSpec, trials: Sequence[Trial], trial: Trial, *, sign: int) -> bool:
    """Return whether `median` stops a trial at its newest rung."""
    if spec.prune != "median" or not trial.rungs:
        return False
    rung, lag = len(trial.rungs) - 1, spec.lag or 1
    others = trials[: max(0, trial.number - lag + 1)] if spec.reproducible else trials
    earlier = [other.rungs[rung] for other in others if other.number != trial.number and len(other.rungs) > rung]
    return is_worse_than_median(trial.rungs[rung], earlier, sign=sign)


def find_known(spec: SweepSpec, trials: Sequence[Trial], number: int) -> list[Known]:
    """Return what trial `number` is suggested from: of each earlier trial what may be used of it."""
    if not spec.reproducible:
        return [_everything(trial) for trial in trials[:number]]
    lag = spec.lag or 1
    return [
        Known(trial, is_running=True) if trial.number > number - lag else _settled(spec, trial, number)
        for trial in trials[:number]
    ]


def _may_suggest(spec: SweepSpec, trials: Sequence[Trial], number: int) -> bool:
    known = trials[: max(0, number - (spec.lag or 1) + 1)]
    if spec.prune != "asha":
        return all(trial.is_over for trial in known)
    before = read_cohort(spec.cohorts, number) - 2
    older = [trials[place] for cohort in range(before + 1) for place in members(spec.cohorts, cohort)]
    return all(trial.is_over for trial in older) and all(trial.has_passed(0) for trial in known)


def _settled(spec: SweepSpec, trial: Trial, number: int) -> Known:
    if spec.prune == "asha" and read_cohort(spec.cohorts, trial.number) > read_cohort(spec.cohorts, number) - 2:
        return Known(trial, trial.rungs[:1], None if trial.rungs or trial.state != "finished" else trial.value)
    return _everything(trial)


def _everything(trial: Trial) -> Known:
    return Known(
        trial,
        trial.rungs,
        trial.value if trial.state == "finished" else None,
        is_running=not trial.is_over and not trial.rungs,
    )
