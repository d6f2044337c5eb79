"""Files are read in order, few at a time, and one that crashes the process that reads it is reported."""

import itertools
import os
import signal
from collections.abc import Iterator

from distrain.data.inspection.worker_pool import open_decode_pool
from distrain.data.loading.isolation import ITEMS_PER_TASK, TASKS_AHEAD


def die_of_some(path: str) -> str:
    if path.endswith("7"):
        os.kill(os.getpid(), signal.SIGKILL)
    if path.endswith("99"):
        os._exit(3)
    return path


def test_results_come_in_order_and_paths_are_read_on_demand() -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield "x" * (taken % 100)

    with open_decode_pool(2) as readers:
        found = list(itertools.islice(readers.read(len, endless(), on_crash=lambda _: -1), 1_000))
    assert found == [number % 100 for number in range(1, 1_001)]
    assert taken <= 1_000 + (2 * TASKS_AHEAD + 1) * ITEMS_PER_TASK


def test_file_that_crashes_its_reader_is_reported_and_the_others_are_read() -> None:
    paths = [f"file-{number}" for number in range(150)]
    expected = {
        path: "reading it crashed the process: it was killed by SIGKILL" for path in paths if path.endswith("7")
    } | {"file-99": "reading it crashed the process: it ended with exit code 3"}
    with open_decode_pool(2) as readers:
        for _ in range(2):  # the processes that took the place of others read on
            found = list(readers.read(die_of_some, paths, on_crash=str.upper))
            assert found == [expected[path].upper() if path in expected else path for path in paths]
