"""Stops all ranks before the same step, whether or not a gradient reduction blocks the host.

A reduction over gloo returns once all ranks have contributed. One over NCCL is only enqueued: the host of a rank runs
ahead of its device, and of the other ranks, by several steps. So nothing here relies on where a reduction holds a rank.

The protocol:

1. Each rank stores its *next step*: the first step that it has not begun. It is s + 1 once `is_reached(s)` has returned
   False. Every rank calls it before each step, including skipped ones, and again wherever training may end.
2. A rank that knows of a stop request sets the key `requested`. The stop thread of every rank polls for that key.
3. A stop thread that finds the key holds its rank and posts the rank's next step. A rank that is held begins no step:
   its next call of `is_reached` waits.
4. The stop thread of rank 0 waits until all ranks have posted, and publishes the largest next step as the stop step.
5. Each stop thread reads the stop step and releases its rank. From then on `is_reached(s)` returns s >= stop step.
6. Ranks leave together, at a barrier: until then the stop threads answer, as another rank may still need them.

Why no rank passes the stop step: a rank that has begun step s has a next step above s, and posts it (or a later one)
before it is released; the stop step is the largest of these, so s < stop step. A lock makes points 1 and 3 mutually
exclusive, so that a rank cannot begin a step between the hold and the read of its next step.

Why all ranks stop before the same step: every result equals "s >= stop step" for the same stop step. If the result was
False before the hold, the rank's next step became s + 1, and the stop step is not smaller; after the release, it is
that comparison. So `is_reached(s)` returns the same on all ranks wherever it is called, before a step, or after an
evaluation, a save or the last step, and a collective call that depends on the result is made by all of them or by none.
If all ranks have begun the last step before they are held, the stop step is after it, and the run finishes.

Why nothing deadlocks: a rank that is held waits only for stop threads and the store, never for another rank's training.
Stop threads do not wait for ranks: they also post while their rank is in a collective call, an evaluation or a save, or
waits for the others in point 6; PyTorch releases the interpreter lock wherever it waits for a device or another rank.
So the stop step becomes known, and held ranks continue up to it and join the collective calls in which others wait.
A rank that fails skips point 6: the launcher ends the others. If the store is lost, a held rank raises an error.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from distrain.distributed.world import World
from distrain.system.loop_guard import LoopGuard

_POLL_S = 0.1  # the longest delay before a request is noticed
_HELD_POLL_S = 0.01
_JOIN_S = 1.0  # do not wait longer for a thread that is blocked by the store
_STORE_TIMEOUT_S = 30.0  # how long a held rank waits for a store that does not answer


class StopConsensus:
    """Makes all ranks stop before the same step; without a request, the cost is one lock per step.

    `name` distinguishes several consensus objects between the same ranks.
    """

    def __init__(self, world: World, is_requested: Callable[[], bool], *, name: str) -> None:
        self._world = world
        self._is_single = world.store is None
        self._is_requested = is_requested
        self._request_key = f"distrain/{name}/requested"
        self._next_keys = [f"distrain/{name}/next-step/{rank}" for rank in range(world.size)]
        self._stop_key = f"distrain/{name}/stop-step"
        self._lock = threading.Lock()  # guards the next two
        self._next_step = 0
        self._is_held = False
        self._stop_step = 0
        self._is_known = threading.Event()  # whether the stop step is known
        self._answered_s = 0.0  # when the store last answered
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="distrain-stop", daemon=True)

    def __enter__(self) -> Self:
        if self._world.store is not None:
            self._answered_s = time.monotonic()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._world.store is None:
            return
        if kind is None:
            self._world.barrier()  # point 6; after an exception the others may never reach it
        self._is_closed.set()
        self._thread.join(_JOIN_S)

    def is_reached(self, step: int) -> bool:
        """Return whether the ranks stop before they begin `step`; every rank gets the same answer.

        Raises `ConnectionError` if a stop was requested and the store is lost.
        """
        if self._is_single and not self._is_held:  # no other rank to agree with
            if not self._is_requested():
                self._next_step = step + 1
                return False
            self._is_held, self._stop_step = True, self._next_step
            self._is_known.set()
        with self._lock:
            if not self._is_held:
                self._next_step = step + 1
                return False
        while not self._is_known.wait(1.0):
            if time.monotonic() - self._answered_s > _STORE_TIMEOUT_S:
                raise ConnectionError("the store of this process group does not answer, so no stop step is known")
        return step >= self._stop_step

    def _run(self) -> None:
        """Poll in the stop thread until the stop step is known; an error in one round does not end it."""
        guard = LoopGuard("the agreement on the stop step")
        while not self._is_known.is_set():
            if self._is_closed.wait(_HELD_POLL_S if self._is_held else _POLL_S):
                return
            with guard:
                self._advance()
                self._answered_s = time.monotonic()

    def _advance(self) -> None:
        """Do points 2 to 5 as far as possible now; repeating a part is harmless, and none waits for another rank."""
        store = self._world.store
        assert store is not None
        if not self._is_held:
            if self._is_requested():
                store.set(self._request_key, "")
            elif not store.check([self._request_key]):
                return
            with self._lock:
                self._is_held = True
        store.set(self._next_keys[self._world.rank], str(self._next_step))  # it does not change from here on
        if self._world.is_rank_zero and store.check(self._next_keys):
            store.set(self._stop_key, str(max(int(step) for step in store.multi_get(self._next_keys))))
        if store.check([self._stop_key]):
            self._stop_step = int(store.get(self._stop_key))
            self._is_known.set()
