"""Each attempt of a run has the reason why it ended, from its state and from the reports of its ranks."""

from pathlib import Path
from typing import Any

import pytest

from distrain.config import load_recipe
from distrain.runs.attempts import describe_preemptions, explain_attempts
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Attempt, Status


def attempt(number: int, state: Any, **more: Any) -> Attempt:
    begin = {"host": "h", "pid": 1, "world_size": 2, "first_step": 0, "last_step": 5, "started": 100.0 * number}
    return Attempt(**{**begin, "ended": 100.0 * number + 50, "state": state, **more})


def report(rank: int, time: float, message: str, *, is_secondary: bool = False) -> dict[str, Any]:
    where = {"rank": rank, "time": time, "host": "h", "step": 5, "is_secondary": is_secondary}
    return {**where, "type": "RuntimeError", "message": message, "traceback": ""}


def test_attempt_that_failed_has_the_first_error_of_its_time(tmp_path: Path) -> None:
    attempts = [attempt(1, "failed"), attempt(2, "preempted"), attempt(3, "failed"), attempt(4, "running", ended=None)]
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.write_error(report(1, 130, "lost peer", is_secondary=True))
    run.write_error(report(0, 131, "disk full"))
    run.error(2).write_text("[]")
    run.error(3).write_text("{}")
    explained = explain_attempts(run, Status(attempts=attempts), state="died")
    assert [each.state for each in explained] == ["failed", "preempted", "failed", "died"]
    assert [each.why for each in explained[:3]] == [
        "RuntimeError: disk full (rank 0 on h, step 5)",
        "preempted, after a save",
        "ended without an error report",
    ]
    assert [each.seconds for each in explained] == [50, 50, 50, None]


@pytest.mark.parametrize(
    ("steps", "state", "why"),
    [
        (5, "finished", "done"),
        (3, "finished", "ended by a limit of the recipe, before 5 steps"),
        (3, "running", "has not ended"),
        (3, "died", "its processes were killed, or their machine failed"),
    ],
)
def test_attempt_without_an_error_is_explained_by_its_state(tmp_path: Path, steps: int, state: Any, why: str) -> None:
    written = "running" if state == "died" else state  # a process that dies cannot write it
    status = Status(total_steps=5, attempts=[attempt(1, written, last_step=steps)])
    (explained,) = explain_attempts(RunDirectory(tmp_path), status, state=state)
    assert explained.why == why


def test_preemption_changes_the_result_only_with_another_number_of_processes() -> None:
    recipe = load_recipe("digits", overrides=[])
    same = Status(attempts=[attempt(1, "preempted"), attempt(2, "finished")])
    other = Status(attempts=[attempt(1, "preempted"), attempt(2, "preempted"), attempt(3, "finished", world_size=1)])
    assert describe_preemptions(same, lambda: recipe) == "once; the result is the same as without"
    assert str(describe_preemptions(other, lambda: recipe)).startswith("2 times; the result differs by rounding")
    assert describe_preemptions(Status(), lambda: recipe) is None
