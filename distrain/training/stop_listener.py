"""Watches for the stop file in a thread, so that a request to stop reaches this rank within a tenth of a second."""

import threading
from types import TracebackType
from typing import Self

from distrain.runs.directory import RunDirectory
from distrain.system.loop_guard import LoopGuard
from distrain.system.signals import StopRequest

POLL_S = 0.1


class StopListener:
    """Listens for stop requests by a signal or the stop file; the context manager runs its thread."""

    def __init__(self, run: RunDirectory, request: StopRequest | None = None) -> None:
        """`request` is set by this listener, and by a signal handler or anything else that receives a stop request."""
        self._run = run
        self.request = request or StopRequest()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="distrain-stop-listener", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def is_requested(self) -> bool:
        """Whether a stop was requested, as of the last poll; reads only memory."""
        return self.request.is_set()

    def poll_stop_request(self) -> bool:
        """Look for the stop file now, where a tenth of a second matters; returns whether a stop is requested."""
        if self._run.stop.exists():
            self.request.set()
        return self.request.is_set()

    def _listen(self) -> None:
        """Poll until the end. Nothing that a poll raises ends the thread: a full disk or a lost mount passes."""
        guard = LoopGuard("listening for the stop file")
        while True:
            with guard:
                self.poll_stop_request()
            if self._over.wait(POLL_S):
                return
