"""The arithmetic of a plan against calculations by hand."""

import pytest

from distrain.benchmark.schedule_estimate import (
    _count_due,
    cut_into_jobs,
    kept_checkpoints,
    plan_schedule,
    read_time_limit,
)
from distrain.config import load_recipe
from distrain.errors import DataError, LaunchError

DIGITS = 1438  # training samples: 23 steps of 64


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30 * 60),
        ("30:15", 30 * 60 + 15),
        ("08:00:00", 8 * 3600),
        ("2-0", 48 * 3600),
        ("1-12:30", 36 * 3600 + 1800),
        ("1-0:0:7", 86407),
    ],
)
def test_time_limit_is_read_as_sbatch_reads_it(text: str, seconds: int) -> None:
    assert read_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "8h", "1:2:3:4", "-1", "1-"])
def test_other_text_is_not_a_time_limit(text: str) -> None:
    with pytest.raises(LaunchError, match="not a time limit"):
        read_time_limit(text)


@pytest.mark.parametrize(
    ("changes", "expected"),  # steps an epoch, steps, evaluations, checkpoints
    [
        ([], (23, 345, 15, 15)),
        (["data.drop_last=true"], (22, 330, 15, 15)),
        (["train.max_steps=100"], (23, 100, 5, 5)),  # after 23, 46, 69, 92, 100
        (["train.epochs=2", "checkpoint.every_steps=10"], (23, 46, 2, 6)),  # 10, 20, 23, 30, 40, 46
        (["train.epochs=2", "eval.every_epochs=null", "eval.at_start=true"], (23, 46, 2, 2)),
        (["train.epochs=4", "checkpoint.every_epochs=2", "checkpoint.keep_best=false"], (23, 92, 4, 2)),
        (["train.epochs=2147483647", "checkpoint.every_steps=1"], (23, 49392123881, 2147483647, 49392123881)),
        (["train.epochs=4", "checkpoint.every_epochs=2"], (23, 92, 4, 4)),  # each evaluation may be the best so far
    ],
)
def test_schedule_of_a_run(changes: list[str], expected: tuple[int, int, int, int]) -> None:
    course = plan_schedule(load_recipe("digits", overrides=changes), num_samples=DIGITS)
    found = (course.steps_per_epoch, course.total_steps, course.num_evaluations, course.num_checkpoints)
    assert found == expected


def test_schedule_without_a_step_is_refused() -> None:
    recipe = load_recipe("digits", overrides=["data.batch_size=2048", "data.drop_last=true"])
    with pytest.raises(DataError, match="drop_last leaves nothing: the data has 1,438 training samples"):
        plan_schedule(recipe, num_samples=DIGITS)


@pytest.mark.parametrize(
    ("changes", "expected"),  # with the one that is being written
    [
        ([], 2 + 1 + 1),
        (["checkpoint.keep_best=false", "checkpoint.keep_last=5"], 5 + 1),
        (["train.epochs=1"], 1 + 1),
        (["checkpoint.every_steps=5", "checkpoint.keep_every_steps=50"], 2 + 1 + 6 + 1),  # 50, 100, ... 300 of 345
    ],
)
def test_checkpoints_that_are_kept(changes: list[str], expected: int) -> None:
    recipe = load_recipe("digits", overrides=changes)
    assert kept_checkpoints(recipe, plan_schedule(recipe, num_samples=DIGITS)) == expected


@pytest.mark.parametrize(
    ("training_s", "limit_s", "count", "usable_s"),
    [
        (400, 600, 1, 450),
        (450, 600, 1, 450),
        (451, 600, 2, 450),  # of each job 30 s start it up, and 120 s before its end it saves
        (1000, 600, 3, 450),
        (1000, 150, None, 0),
    ],
)
def test_jobs_under_a_time_limit(training_s: float, limit_s: float, count: int | None, usable_s: float) -> None:
    jobs = cut_into_jobs(training_s, limit_s=limit_s, start_up_s=30, warning_s=120)
    assert (jobs.count, jobs.usable_s) == (count, usable_s)


@pytest.mark.parametrize("total", [1, 2, 23, 90, 345])
@pytest.mark.parametrize("intervals", [[], [1], [7], [23, 10], [23, 46, 10, 15], [400]])
def test_due_steps_are_counted_as_by_enumeration(total: int, intervals: list[int]) -> None:
    steps = {total}.union(*(range(interval, total + 1, interval) for interval in intervals))
    assert _count_due(total, intervals) == len(steps)
