"""Which checkpoints are kept, as a pure function of their steps and evaluations."""

from pathlib import Path

import pytest

from distrain.errors import RunError
from distrain.runs.checkpoints.catalog import Entry, best_step, choose
from distrain.runs.checkpoints.retention import expired
from tests.checkpoint.factories import make_training, save


def entries(given: dict[str, float], *, run_best: int | None = None) -> list[Entry]:
    """Checkpoints of steps 10 to 60, some with an evaluation: "s20": 0.5 means that step 20 has a score of 0.5."""
    return [
        Entry(Path(str(step)), step, 1, 0.0, None, score=given.get(f"s{step}"), run_best=run_best)
        for step in range(10, 70, 10)
    ]


@pytest.mark.parametrize(
    ("given", "keep_last", "keep_best", "keep_every_steps", "kept"),
    [
        ({}, 1, True, None, {60}),
        ({}, 2, True, None, {50, 60}),
        ({}, 99, False, None, {10, 20, 30, 40, 50, 60}),
        ({"s20": 0.5}, 1, True, None, {20, 60}),
        ({"s20": 0.5}, 1, False, None, {60}),
        ({"s20": 0.5, "s40": 0.7}, 1, True, None, {40, 60}),
        ({"s20": 0.7, "s40": 0.7, "s60": 0.6}, 2, True, None, {20, 50, 60}),
        ({"s60": 0.0}, 1, True, None, {60}),
        ({"s20": -0.4, "s40": -0.2, "s50": -0.3}, 1, True, None, {40, 60}),
        ({}, 1, True, 20, {20, 40, 60}),
        ({"s10": 0.5}, 1, True, 30, {10, 30, 60}),
        ({}, 1, True, 7, {60}),
    ],
)
def test_last_k_best_and_every_nth_are_kept(
    given: dict[str, float], keep_last: int, keep_best: bool, keep_every_steps: int | None, kept: set[int]
) -> None:
    found = entries(given)
    going = expired(found, keep_last=keep_last, keep_best=keep_best, keep_every_steps=keep_every_steps)
    assert kept == {entry.step for entry in found if entry not in going}
    assert going == sorted(going, key=lambda entry: entry.step)


@pytest.mark.parametrize(("run_best", "kept"), [(20, {20, 60}), (35, {40, 60}), (None, {40, 60})])
def test_best_kept_is_that_of_the_run_or_else_the_highest_score(run_best: int | None, kept: set[int]) -> None:
    found = entries({"s20": 0.5, "s40": 0.7}, run_best=run_best)
    going = expired(found, keep_last=1, keep_best=True, keep_every_steps=None)
    assert kept == {entry.step for entry in found if entry not in going}


def test_nothing_is_kept_of_nothing() -> None:
    assert expired([], keep_last=3, keep_best=True, keep_every_steps=2) == []
    assert best_step([]) is None


def test_checkpoint_is_chosen_by_step_best_or_last(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no checkpoint in"):
        choose(tmp_path, "last")
    model, optimizer = make_training()
    for step in (5, 7):
        save(tmp_path, model, optimizer, step)
    assert choose(tmp_path, "5").name == "step-00000005"
    assert choose(tmp_path, "last").name == "step-00000007"
    with pytest.raises(RunError, match=r"no checkpoint in .* was evaluated"):
        choose(tmp_path, "best")
    for wrong in ("6", "first", "-5"):
        with pytest.raises(RunError, match=f"no checkpoint '{wrong}' in .*; use best, last, or one of 5, 7"):
            choose(tmp_path, wrong)
