"""Reads image files in processes that a file may crash, in order and only as fast as results are consumed.

It uses processes, not threads: half of decoding small images is Python code, which needs the GIL.
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

    def read(self, read: Read[Facts], paths: Iterable[str], *, on_crash: Callable[[str], Facts]) -> Iterator[Facts]:
        """Yield the result of `read` for each path, in their order; only a few results are in memory at any time.

        For a path that crashes the process that reads it, yields the result of `on_crash` for the reason.
        """
        tasks = ((read, path) for path in paths)
        with closing(self._processes.map(tasks)) as results:
            for found in results:
                yield on_crash(str(found)) if isinstance(found, KilledError) else found


@contextmanager
def open_decode_pool(count: int, *, has_pngs: bool = False) -> Iterator[DecodePool]:
    """Start `count` processes that read; they are ended with the block, even after an error or Ctrl-C."""
    if has_pngs:  # only these may need torch
        load_decoders()
    # Python ignores exceptions in its fork hooks, so a Ctrl-C there would be lost: block it until they have run.
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
    warnings.simplefilter("ignore")  # PIL's: findings report them
    Image.MAX_IMAGE_PIXELS = None  # `decode` has the same limit, and reports the size
