"""Runs the queue of a folder for a sweep while no `distrain serve` does: the same scheduler, the same leases."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from distrain.service.queue import is_served, serve_lock
from distrain.service.server import Service
from distrain.system import locks
from distrain.system.loop_guard import LoopGuard, describe

_SWEEP_LOCK = ".sweep-lock"  # in the folder of the runs: the sweep that runs the queue


class OwnScheduler:
    """Schedules one tick after another; a `serve` that is started meanwhile takes over between two of them.

    Of several sweeps in a folder, one schedules for all: the one with `_SWEEP_LOCK`.
    """

    def __init__(self, root: Path, *, slots: int, notify: Callable[[str], None]) -> None:
        self._root = root
        self._service = Service(root, slots=slots, notify=notify)
        self._guard = LoopGuard("the scheduler", report=lambda loop, error: notify(describe(loop, error)))
        self._turn = ExitStack()
        self._has_turn = False

    def tick(self) -> None:
        """Do one tick of the queue, unless a `serve` or another sweep does."""
        if is_served(self._root):
            return
        with suppress(locks.HeldError):
            if not self._has_turn:
                self._turn.enter_context(locks.hold(self._root / _SWEEP_LOCK))
                self._has_turn = True
            with locks.hold(serve_lock(self._root)), self._guard:
                self._service.tick()

    def close(self) -> None:
        """Let another sweep schedule."""
        self._turn.close()
        self._has_turn = False
