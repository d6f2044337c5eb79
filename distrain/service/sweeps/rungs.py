"""Reads how a sweep prunes, and decides it: pure functions of what the trials have reached.

`asha` is successive halving (Jamieson and Talwalkar 2016; Li et al. 2020, A System for Massively Parallel
Hyperparameter Tuning) in cohorts: all trials of a cohort pause at a rung, a third of them is promoted to the next one.
`median` stops a trial that is worse than the median of the earlier trials at the same rung (Golovin et al. 2017).
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from distrain.config import Recipe
from distrain.errors import RecipeError
from distrain.messages import nearest
from distrain.runs.pause import Unit
from distrain.service.sweeps.trial import Trial

PruneName = Literal["none", "asha", "median"]
FACTOR = 3  # one of three trials is promoted, and a rung is three times as high as the one before
MIN_EARLIER = 4  # `median` prunes no trial before as many others have reached the same rung
_RUNGS = re.compile(r"(\d+)\s*(epochs?|steps?)?")


def read_prune(text: str) -> PruneName:
    """Return the name of a pruning rule; raises `RecipeError` for another text."""
    names = get_args(PruneName)
    if text not in names:
        raise RecipeError(f"--prune {text} is none of {', '.join(names)}{nearest(text, names, count=1)}")
    return text  # type: ignore[return-value]  # it is one of the names


def read_rungs(text: str) -> tuple[tuple[int, ...], Unit]:
    """Return rungs such as `1,3,9` (epochs) or `50,150 steps`; raises `RecipeError` for another text."""
    found = [_RUNGS.fullmatch(part.strip()) for part in text.split(",")]
    rungs = [int(part[1]) for part in found if part is not None]
    units = {part[2].rstrip("s") for part in found if part is not None and part[2]}
    if None in found or len(units) > 1:
        raise RecipeError(f"--rungs {text} is not a list of epochs such as 1,3,9, or of steps such as 50,150 steps")
    if rungs != sorted(set(rungs)) or rungs[0] < 1:
        raise RecipeError(f"--rungs {text} must increase from 1 or more")
    return tuple(rungs), "steps" if units == {"step"} else "epochs"


def choose_rungs(recipe: Recipe, prune: PruneName) -> tuple[tuple[int, ...], Unit]:
    """Return the rungs of a recipe by default, at its evaluations before the last one; none without pruning.

    Raises `RecipeError` where the recipe does not say how they are spaced, or evaluates at its end only.
    """
    if prune == "none":
        return (), "epochs"
    train, config = recipe.train, recipe.eval
    every, end, unit = config.every_epochs, train.epochs, "epochs"
    if train.max_steps is not None:
        every, end, unit = config.every_steps, train.max_steps, "steps"
    if every is None:
        raise RecipeError(
            f"--prune {prune} needs --rungs, such as 1,3,9 or 50,150 steps: the {unit} after which trials are compared"
        )
    rungs: list[int] = []
    while (rung := _next_rung(rungs, every, prune)) < end:
        rungs.append(rung)
    if not rungs:
        raise RecipeError(f"--prune {prune} has nothing to do: the recipe evaluates after {every} of {end} {unit}")
    return tuple(rungs), unit  # type: ignore[return-value]  # one of the two above


def check_rungs(recipe: Recipe, rungs: Sequence[int], unit: Unit) -> None:
    """Raise `RecipeError` where the recipe does not evaluate at a rung."""
    config = recipe.eval
    every = config.every_epochs if unit == "epochs" else config.every_steps
    for rung in rungs:
        if every is None or rung % every:
            often = "not by" if every is None else f"every {every}"
            raise RecipeError(
                f"--rungs {rung} {unit}: the recipe evaluates {often} {unit}; add --set eval.every_{unit}={rungs[0]}"
            )


def _next_rung(rungs: Sequence[int], every: int, prune: PruneName) -> int:
    if not rungs:
        return every
    return rungs[-1] * FACTOR if prune == "asha" else rungs[-1] + every


def cut_cohorts(trials: int, rungs: int) -> tuple[int, ...]:
    """Cut `trials` into cohorts for `rungs` rungs: each so large that one trial of it is promoted to the end."""
    size: int = min(FACTOR**rungs, trials)
    return (size,) * (trials // size) + ((trials % size,) if trials % size else ())


def promoted(trials: Sequence[Trial], rung: int, *, size: int, sign: int) -> frozenset[int] | None:
    """Return the numbers of the trials that continue beyond a rung, counted from 0; None before that is known.

    `trials` are those of the cohort so far, and `size` how many it will have. `sign` is 1 where a higher value is
    better, else -1.
    """
    candidates: Sequence[Trial] = trials
    for place in range(rung + 1):
        if len(trials) < size or any(not trial.has_passed(place) for trial in candidates):
            return None
        ranked = sorted(
            (trial for trial in candidates if (trial.value_at(place)) is not None),
            key=lambda trial: (-sign * (trial.value_at(place) or 0.0), trial.number),
        )
        kept = {trial.number for trial in ranked[: max(1, len(candidates) // FACTOR)]}
        candidates = [trial for trial in candidates if trial.number in kept]
    return frozenset(trial.number for trial in candidates)


def promotable(trials: Sequence[Trial], rung: int, *, sign: int) -> list[int]:
    """Return the trials that wait at a rung and are among the best third of all that have reached it so far."""
    reached = [trial for trial in trials if trial.value_at(rung) is not None]
    ranked = sorted(reached, key=lambda trial: (-sign * (trial.value_at(rung) or 0.0), trial.number))
    best = ranked[: len(reached) // FACTOR]
    return [trial.number for trial in best if trial.state == "paused" and len(trial.rungs) == rung + 1]


def is_worse_than_median(value: float | None, earlier: Sequence[float | None], *, sign: int) -> bool:
    """Return whether a value at a rung is worse than the median of the values of earlier trials there."""
    known = [sign * each for each in earlier if each is not None]
    if len(known) < MIN_EARLIER:
        return False
    return value is None or math.isnan(value) or sign * value < statistics.median(known)


def read_cohort(cohorts: Sequence[int], number: int) -> int:
    """Return the cohort, counted from 0, of a trial."""
    first = 0
    for cohort, size in enumerate(cohorts):
        first += size
        if number < first:
            return cohort
    raise IndexError(number)


def members(cohorts: Sequence[int], cohort: int) -> range:
    """Return the numbers of the trials of a cohort."""
    first = sum(cohorts[:cohort])
    return range(first, first + cohorts[cohort])


def by_rung(rungs: Sequence[int], values: Sequence[float | None]) -> Mapping[int, float]:
    """Return the values that are known by the rung, in its epochs or steps."""
    return {rung: value for rung, value in zip(rungs, values, strict=False) if value is not None}
