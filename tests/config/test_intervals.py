"""No log line, evaluation or checkpoint is skipped, and the last step has all three."""

import pytest

from distrain.config import load_recipe
from distrain.config.intervals import Intervals


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["log.every_steps=4", "checkpoint.every_steps=7", "eval.every_steps=5"],
        ["eval.every_epochs=null", "checkpoint.every_epochs=null", "log.every_steps=1000"],
        ["eval.every_epochs=2", "checkpoint.every_epochs=3", "log.every_steps=9"],
    ],
)
def test_boundaries_are_the_steps_with_a_log_line_an_evaluation_or_a_checkpoint(overrides: list[str]) -> None:
    intervals = Intervals(load_recipe("digits", overrides=overrides), steps_per_epoch=23, total_steps=100)
    boundaries = []
    step = 0
    while step < 100:
        step = intervals.next_boundary(step)
        boundaries.append(step)
    expected = [
        s for s in range(1, 101) if intervals.should_log(s) or intervals.should_evaluate(s) or intervals.should_save(s)
    ]
    assert boundaries == expected
    assert intervals.should_log(100) and intervals.should_evaluate(100) and intervals.should_save(100)


def test_epochs_and_steps_are_both_counted() -> None:
    intervals = Intervals(
        load_recipe("digits", overrides=["checkpoint.every_steps=10"]), steps_per_epoch=23, total_steps=50
    )
    assert [s for s in range(1, 51) if intervals.should_save(s)] == [10, 20, 23, 30, 40, 46, 50]
    assert [s for s in range(1, 51) if intervals.should_evaluate(s)] == [23, 46, 50]


@pytest.mark.parametrize("overrides", [[], ["eval.every_steps=10"], ["eval.every_epochs=null", "eval.every_steps=7"]])
def test_evaluations_between_two_steps_are_counted_once(overrides: list[str]) -> None:
    intervals = Intervals(load_recipe("digits", overrides=overrides), steps_per_epoch=4, total_steps=1000)
    for first, last in ((0, 0), (0, 8), (3, 40), (4, 41), (20, 20), (7, 140)):
        expected = sum(intervals.should_evaluate(step) for step in range(first + 1, last + 1))
        assert intervals.num_evaluations(first, last) == expected


def test_before_the_first_step_there_is_only_an_evaluation_and_only_if_requested() -> None:
    for at_start in (False, True):
        recipe = load_recipe("digits", overrides=[f"eval.at_start={str(at_start).lower()}", "eval.every_steps=5"])
        intervals = Intervals(recipe, steps_per_epoch=23, total_steps=50)
        assert intervals.should_evaluate(0) == at_start
        assert not intervals.should_log(0) and not intervals.should_save(0)
