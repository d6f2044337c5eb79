"""Files are read in order, few at a time, and the death of a process is told."""

import itertools
import os
import signal
from collections.abc import Iterator, Sequence

import pytest

from distrain.errors import DistrainError
from distrain.inspect.reading import FILES_A_TASK, TASKS_AHEAD, reading_processes


def lengths(paths: Sequence[str]) -> list[int]:
    return [len(path) for path in paths]


def die(paths: Sequence[str]) -> list[int]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def test_results_come_in_order_and_paths_are_taken_as_they_are_needed() -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield "x" * (taken % 100)

    with reading_processes(2) as readers:
        found = list(itertools.islice(readers.read(lengths, endless()), 1_000))
    assert found == [number % 100 for number in range(1, 1_001)]
    assert taken <= 1_000 + (2 * TASKS_AHEAD + 1) * FILES_A_TASK


@pytest.mark.parametrize("num_files", [1, 10_000])
def test_death_of_a_process_is_told_with_the_place(num_files: int) -> None:
    with pytest.raises(DistrainError, match=r"was killed.* at file-0 or after"), reading_processes(2) as readers:
        list(readers.read(die, (f"file-{number}" for number in range(num_files))))
