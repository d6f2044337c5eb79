"""Keeps the loops that a run depends on alive: an exception ends an iteration, never the loop."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from distrain.messages import type_and_first_line

_PAUSE_S = 0.1  # after a failed iteration: a loop that always fails must not use a whole core

log = logging.getLogger(__name__)


class LoopGuard:
    """Suppresses an exception of an iteration, and reports it once for each line of code that raises it.

    The body of `with guard:` is one iteration. `report` is called with the loop's name and the exception; by default
    both are logged, with the traceback. Exceptions that end a process (`SystemExit`, `KeyboardInterrupt`) propagate.
    """

    def __init__(self, loop: str, *, report: Callable[[str, Exception], None] | None = None) -> None:
        self._loop = loop
        self._report = report or _log
        self._reported: set[tuple[type[Exception], str, int]] = set()

    def __enter__(self) -> None:
        """Begin an iteration."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """End the iteration; returns whether its exception is suppressed."""
        if not isinstance(error, Exception):
            return False
        place = type(error), *_innermost(trace)
        if place not in self._reported:
            self._reported.add(place)
            with suppress(Exception):
                self._report(self._loop, error)
        time.sleep(_PAUSE_S)
        return True


def describe(loop: str, error: Exception) -> str:
    """Return a sentence that says that an iteration of `loop` failed with `error`, and that the loop continues."""
    return f"{loop} failed once ({type_and_first_line(error)}) and continues"


def _log(loop: str, error: Exception) -> None:
    log.warning("%s", describe(loop, error), exc_info=error)


def _innermost(trace: TracebackType | None) -> tuple[str, int]:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return ("", 0) if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
