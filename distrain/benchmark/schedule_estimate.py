"""Estimates the evaluations and checkpoints of a run, its jobs and its disk space, as pure functions."""

import math
import re
from dataclasses import dataclass
from itertools import combinations

from distrain.config import Recipe
from distrain.config.batching import count_steps_per_epoch
from distrain.errors import LaunchError

# sbatch(1), --time: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S
_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


@dataclass(frozen=True)
class RunSchedule:
    """The schedule of a run from its first step to its last."""

    steps_per_epoch: int
    total_steps: int
    num_evaluations: int
    num_checkpoints: int  # at most, where each evaluation may be the best so far


@dataclass(frozen=True)
class Jobs:
    """The jobs of a run that is stopped by a time limit and resumed each time."""

    count: int | None  # None: the limit leaves no time to train
    usable_s: float  # of each job: without start-up, and without the time that SLURM warns before the limit


def read_time_limit(text: str) -> float:
    """Return the seconds of a time limit in sbatch's format; raises `LaunchError` for any other text."""
    found = _LIMIT.fullmatch(text.strip())
    if found is None:
        raise LaunchError(f"--time {text} is not a time limit; use H:M:S, minutes, or D-H:M:S, as for sbatch")
    numbers = [int(number) for number in found["rest"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return float(((int(found["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds)
    if len(numbers) == 3:
        return float((numbers[0] * 60 + numbers[1]) * 60 + numbers[2])
    return float(numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0))


def plan_schedule(recipe: Recipe, *, num_samples: int) -> RunSchedule:
    """Return the schedule of a run with `num_samples` samples per epoch; raises `DataError` where it has no step."""
    per_epoch = count_steps_per_epoch(num_samples, recipe.data.batch_size, drop_last=recipe.data.drop_last)
    total = min(recipe.train.epochs * per_epoch, recipe.train.max_steps or 2**63)
    evaluations = _intervals(per_epoch, recipe.eval.every_steps, recipe.eval.every_epochs)
    checkpoints = _intervals(per_epoch, recipe.checkpoint.every_steps, recipe.checkpoint.every_epochs)
    if recipe.checkpoint.keep_best:
        checkpoints += evaluations
    return RunSchedule(
        per_epoch, total, _count_due(total, evaluations) + recipe.eval.at_start, _count_due(total, checkpoints)
    )


def kept_checkpoints(recipe: Recipe, schedule: RunSchedule) -> int:
    """Return the largest number of checkpoints at the end, including the one being written."""
    config = recipe.checkpoint
    staying = 0 if config.keep_every_steps is None else schedule.total_steps // config.keep_every_steps
    return min(schedule.num_checkpoints, config.keep_last + config.keep_best + staying) + 1


def cut_into_jobs(training_s: float, *, limit_s: float, start_up_s: float, warning_s: float) -> Jobs:
    """Return the number of jobs of `limit_s` for a run, each of which starts up, and is stopped before its limit.

    No training is lost: a job saves when it is stopped.
    """
    if start_up_s + training_s <= limit_s - warning_s:
        return Jobs(1, limit_s - warning_s - start_up_s)
    usable_s = limit_s - warning_s - start_up_s
    return Jobs(math.ceil(training_s / usable_s) if usable_s > 0 else None, max(0.0, usable_s))


def _intervals(per_epoch: int, every_steps: int | None, every_epochs: int | None) -> list[int]:
    """Return the intervals in steps."""
    return [
        *([] if every_epochs is None else [every_epochs * per_epoch]),
        *([] if every_steps is None else [every_steps]),
    ]


def _count_due(total: int, intervals: list[int]) -> int:
    """Return after how many of `total` steps an event is due: at multiples of any interval, and at the last step.

    It uses inclusion and exclusion, since a run may have too many steps to enumerate.
    """
    count = 0
    for size in range(1, len(intervals) + 1):
        for chosen in combinations(intervals, size):
            count -= (-1) ** size * (total // math.lcm(*chosen))
    return count + all(total % interval for interval in intervals)
