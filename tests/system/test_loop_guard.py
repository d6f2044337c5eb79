"""A loop survives exceptions of its iterations, and reports each one once."""

import logging

import pytest

from distrain.system.loop_guard import LoopGuard


def test_failing_iteration_is_logged_once_and_the_loop_continues(caplog: pytest.LogCaptureFixture) -> None:
    guard, rounds = LoopGuard("the loop"), 0
    logging.getLogger("distrain").propagate = True
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            with guard:
                rounds += 1
                if number < 2:
                    raise ValueError("bad\nnews")
                if number == 2:
                    raise ValueError("from another line")
    assert rounds == 4
    assert [record.getMessage() for record in caplog.records] == [
        "the loop failed once (ValueError: bad) and continues",
        "the loop failed once (ValueError: from another line) and continues",
    ]
    assert all(record.exc_info for record in caplog.records)


def test_failing_report_does_not_end_the_loop() -> None:
    def report(loop: str, error: Exception) -> None:
        raise BrokenPipeError

    with LoopGuard("the loop", report=report):
        raise ValueError


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_exception_that_ends_a_process_propagates(kind: type[BaseException]) -> None:
    with pytest.raises(kind), LoopGuard("the loop"):
        raise kind
