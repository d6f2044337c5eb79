"""A function is called in separate processes, and a crash is returned like any other result."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from distrain.data.loading.isolation import Isolated, KilledError


def readers() -> list[multiprocessing.process.BaseProcess]:
    return [child for child in multiprocessing.active_children() if child.name == "distrain-reader"]


def half(number: int) -> float:
    if number % 10 == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number / 2


@pytest.mark.parametrize("items_per_task", [1, 4])
def test_results_and_crashes_come_in_order(items_per_task: int) -> None:
    with Isolated(half, 3) as processes:
        found = list(processes.map(range(40), items_per_task=items_per_task, tasks_ahead=2))
    assert [number for number, result in enumerate(found) if isinstance(result, KilledError)] == [3, 13, 23, 33]
    assert str(found[3]) == "reading it crashed the process: it was killed by SIGKILL"
    assert [result for result in found if not isinstance(result, KilledError)] == [
        number / 2 for number in range(40) if number % 10 != 3
    ]
    assert not readers()


def test_process_killed_from_outside_loses_no_item() -> None:
    with Isolated(str, 2) as processes, closing(processes.map(range(200), items_per_task=5, tasks_ahead=1)) as found:
        seen = []
        for text in found:
            seen.append(text)
            if len(seen) in (20, 90):
                readers()[0].kill()
    assert seen == [str(number) for number in range(200)]


def test_error_of_the_function_is_raised_with_its_traceback() -> None:
    with Isolated(int, 1) as processes:
        found = processes.map(["1", "x"], items_per_task=1, tasks_ahead=1)
        assert next(found) == 1
        with pytest.raises(ValueError, match="invalid literal") as caught:
            next(found)
    assert "in a process that reads:\nTraceback" in caught.value.__notes__[0]


def test_few_items_are_read_ahead_and_closing_early_leaves_nothing() -> None:
    taken = 0

    def count() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    threads = threading.active_count()
    with Isolated(str, 2) as processes, closing(processes.map(count(), items_per_task=3, tasks_ahead=2)) as found:
        assert [next(found) for _ in range(4)] == ["1", "2", "3", "4"]
    assert taken <= 3 * (2 * 2 + 2)
    assert not readers()
    for thread in threading.enumerate():
        if thread.name.startswith("distrain-isolated"):
            thread.join(20)
    assert threading.active_count() == threads
