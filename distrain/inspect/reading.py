"""Owns the processes that read image files, and the order and number in which results come back.

Processes and not threads: decoding small pictures is half Python, which one process runs in one thread at a time.
"""

import itertools
import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import TypeVar

from PIL import Image

from distrain.errors import DistrainError
from distrain.process import die_with_parent

Facts = TypeVar("Facts")

FILES_A_TASK = 32  # enough that handing a task over costs nothing, few enough that progress is smooth
TASKS_AHEAD = 4  # for each process


class Readers:
    """Processes that read files, as many as asked for."""

    def __init__(self, executor: ProcessPoolExecutor, num_processes: int) -> None:
        self._executor = executor
        self._tasks_ahead = num_processes * TASKS_AHEAD

    def read(self, read: Callable[[Sequence[str]], Sequence[Facts]], paths: Iterable[str]) -> Iterator[Facts]:
        """Yield what `read` makes of each path, in their order; only a few results are held at any time.

        Raises `DistrainError` where a process dies.
        """
        remaining = iter(paths)
        running: deque[tuple[str, Future[Sequence[Facts]]]] = deque()
        try:
            while True:
                while len(running) < self._tasks_ahead and (task := list(itertools.islice(remaining, FILES_A_TASK))):
                    running.append((task[0], self._executor.submit(read, task)))
                if not running:
                    return
                yield from running[0][1].result()
                running.popleft()
        except BrokenProcessPool:
            where = f", at {running[0][0]} or after it" if running else ""
            raise DistrainError(
                f"a process that read images was killed, perhaps for want of memory{where}; give fewer --workers, "
                f"or move the files from there on away by halves to find the one that does it"
            ) from None


@contextmanager
def reading_processes(count: int) -> Iterator[Readers]:
    """Start `count` processes that read; they end with the block, at once if it ends with an error or Ctrl-C."""
    before = multiprocessing.active_children()
    executor = ProcessPoolExecutor(count, initializer=_begin)
    # Python drops what is raised in its hooks around a fork, and Ctrl-C there would be lost: it waits until after them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    executor.submit(int)  # starts all of them, before a progress bar has started a thread
    started = [process for process in multiprocessing.active_children() if process not in before]
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield Readers(executor, count)
    except BaseException:
        _end(started)
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes: the first one answers
    die_with_parent()
    warnings.simplefilter("ignore")  # PIL's, of which a finding tells
    Image.MAX_IMAGE_PIXELS = None  # a limit of ours holds instead


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
