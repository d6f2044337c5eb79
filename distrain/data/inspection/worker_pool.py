"""Reads image files in processes that a file may kill, in order and only as fast as results are consumed.

Processes and not threads: decoding small pictures is half Python, which one process runs in one thread at a time.
"""

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from PIL import Image

from distrain.data.loading.isolation import Isolated, KilledError
from distrain.data.sources.decoders import load_decoders

Facts = TypeVar("Facts")
Read = Callable[[str], Facts]


class DecodePool:
    """A fixed number of processes that read files."""

    def __init__(self, processes: Isolated[tuple[Read[Any], str], Any]) -> None:
        self._processes = processes

    def read(self, read: Read[Facts], paths: Iterable[str], *, when_killed: Callable[[str], Facts]) -> Iterator[Facts]:
        """Yield what `read` makes of each path, in their order; only a few results are held at any time.

        A path that kills the process that reads it gives what `when_killed` makes of the reason.
        """
        tasks = ((read, path) for path in paths)
        with closing(self._processes.map(tasks)) as results:
            for found in results:
                yield when_killed(str(found)) if isinstance(found, KilledError) else found


@contextmanager
def reading_processes(count: int, *, has_pngs: bool = False) -> Iterator[DecodePool]:
    """Start `count` processes that read; they end with the block, at once if it ends with an error or Ctrl-C."""
    if has_pngs:  # for these alone it may load torch
        load_decoders()
    # Python drops what is raised in its hooks around a fork, and Ctrl-C there would be lost: it waits until after them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    processes = Isolated(_read, count, initializer=_initialize)  # before a progress bar has started a thread
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield DecodePool(processes)
    finally:
        processes.close()


def _read(task: tuple[Read[Any], str]) -> Any:
    read, path = task
    return read(path)


def _initialize() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    warnings.simplefilter("ignore")  # PIL's, of which a finding tells
    Image.MAX_IMAGE_PIXELS = None  # `decode` has the same limit, and the size is told
