"""Runs a logger in its own thread, so that it can neither delay nor stop the training."""

import logging
import queue
import threading
from collections.abc import Callable

from distrain.messages import type_and_first_line
from distrain.system.loop_guard import LoopGuard
from distrain.training.loggers.protocol import LoggerContext, MetricLogger, Record

CAPACITY = 10_000  # records that wait for a slow logger; more are dropped from it, metrics.jsonl has them all
CLOSE_TIMEOUT_S = 60.0

log = logging.getLogger(__name__)


class Background:
    """A logger in its own thread. A record that it fails to write is dropped, with one warning for each kind of error.

    One that cannot be opened, or falls far behind, is given up with a warning.

    It is opened at the first record: an attempt without one leaves the files of earlier ones as they are.
    """

    def __init__(self, name: str, factory: Callable[[LoggerContext], MetricLogger], context: LoggerContext) -> None:
        self._name = name
        self._factory = factory
        self._opening = context
        self._queue: queue.Queue[Record | None] = queue.Queue(CAPACITY)
        self._has_failed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"distrain-{name}", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Hand one record over; never waits."""
        if not self._has_failed.is_set():
            try:
                self._queue.put_nowait(record)
            except queue.Full:
                self._give_up("it falls behind the training")

    def close(self) -> None:
        """Wait for the logger to write what it was given, up to a minute."""
        if not self._has_failed.is_set():
            self._queue.put(None)
            self._thread.join(CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                self._give_up(f"it did not finish in {CLOSE_TIMEOUT_S:.0f} s")

    def _run(self) -> None:
        try:
            record = self._queue.get()  # its imports take seconds, and must not slow down the start of the run
            if record is None:
                return
            logger = self._factory(self._opening)
            guard = LoopGuard(f"writing to {self._name}")
            while record is not None:
                with guard:
                    logger.write(record)
                record = self._queue.get()
            logger.close()
        except Exception as error:
            self._give_up(type_and_first_line(error))
            log.debug("%s failed", self._name, exc_info=error)

    def _give_up(self, reason: str) -> None:
        if not self._has_failed.is_set():
            self._has_failed.set()
            log.warning(
                "%s gets no more records (%s); training continues, metrics.jsonl has them all", self._name, reason
            )
