"""Calls a function on many items in separate processes; an item that crashes its process is reported, the others run.

Decoders and the user's transforms and datasets may end their process: by a segmentation fault, by `os._exit`, or
because the system runs out of memory. One thread calls and waits for each process.
"""

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from threading import Lock
from typing import Any, Generic, TypeVar

from distrain.system.exits import as_exception, keep_frames
from distrain.system.process import die_with_parent, release_signals
from distrain.system.signals import handled_signals

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_PER_TASK = 32  # enough that the overhead of a task is negligible, few enough that progress is smooth
TASKS_AHEAD = 4  # for each process


class KilledError(Exception):
    """An item has crashed its process twice; the message is the reason, to be put in brackets."""


class Isolated(Generic[Item, Result]):
    """Calls `function` in `count` processes, forks of this one that each call `initializer` first.

    Close it, or use it as a context manager.
    """

    def __init__(
        self, function: Callable[[Item], Result], count: int, *, initializer: Callable[[], object] | None = None
    ) -> None:
        self._function = function
        self._initializer = initializer
        self._count = count
        self._lock = Lock()  # a process forked while another's pipe is being made would inherit an end of the pipe
        self._is_closed = False
        self._all: set[_Process] = set()
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for _ in range(count):
            self._idle.put(self._start())

    def __enter__(self) -> "Isolated[Item, Result]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(
        self, items: Iterable[Item], *, items_per_task: int = ITEMS_PER_TASK, tasks_ahead: int = TASKS_AHEAD
    ) -> Generator[Result | KilledError, None, None]:
        """Yield the function's result for each item, in the order of the items; raises what the function raises.

        An item that crashes its process twice gives a `KilledError`. At most `tasks_ahead` tasks for each process, of
        `items_per_task` items each, run ahead of the consumer. Close the generator to cancel the rest.
        """
        remaining, running = iter(items), deque[Future[list[Result | KilledError]]]()
        executor = ThreadPoolExecutor(self._count, "distrain-isolated")
        try:
            while True:
                while len(running) < self._count * tasks_ahead and (task := list(islice(remaining, items_per_task))):
                    running.append(executor.submit(self._do, task))
                if not running:
                    return
                yield from running.popleft().result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Kill the processes."""
        with self._lock:
            self._is_closed = True
            for process in self._all:
                process.end()

    def _do(self, task: list[Item]) -> list[Result | KilledError]:
        try:
            return [*self._call(task)]
        except KilledError:  # by one of the items, or from outside, for example by the out-of-memory killer
            return [self._do_one(item) for item in task]

    def _do_one(self, item: Item) -> Result | KilledError:
        try:
            return self._call([item])[0]
        except KilledError as error:
            return error

    def _call(self, task: list[Item]) -> list[Result]:
        process = self._idle.get()
        try:
            is_result, found = process.call(task)
        except _ProcessDiedError as error:
            process = self._replace(process)
            raise KilledError(f"reading it crashed the process: it {error}") from None
        finally:
            self._idle.put(process)
        if not is_result:
            raise found
        results: list[Result] = found
        return results

    def _start(self) -> "_Process":
        with self._lock:
            process = _Process(self._function, self._initializer)
            self._all.add(process)
            return process

    def _replace(self, process: "_Process") -> "_Process":
        process.end()
        with self._lock:
            if self._is_closed:
                return process
            self._all.remove(process)
        return self._start()


class _ProcessDiedError(Exception):
    """A process has died; the message says how."""


class _Process:
    """One process, and the pipe to it."""

    def __init__(self, function: Callable[[Any], Any], initializer: Callable[[], object] | None) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, child_end = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_work, args=(function, initializer, child_end, self._pipe), name="distrain-reader", daemon=True
        )
        self._process.start()
        child_end.close()

    def call(self, task: list[Any]) -> tuple[bool, Any]:
        """Return True and the results of a task, or False and its exception; raises `_ProcessDiedError`."""
        try:
            self._pipe.send(task)
            wait([self._pipe, self._process.sentinel])  # other processes may hold the child's end of the pipe open
            if self._pipe.poll():
                response: tuple[bool, Any] = self._pipe.recv()
                return response
        except (EOFError, OSError):
            pass
        self._process.join()
        raise _ProcessDiedError(describe_exit(self._process.exitcode))

    def end(self) -> None:
        """Kill the process; its pipe stays open for a thread that waits for it."""
        self._process.kill()
        self._process.join()


def describe_exit(code: int | None) -> str:
    """Return how a process ended, by its exit code, such as "was killed by SIGSEGV"."""
    if code is None:
        return "is gone"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def follow_parent() -> None:
    """Die with the parent process, and ignore stop signals that are sent to the whole process group.

    The parent decides: it may still need samples from this process, for example while it stops at a common step. The
    handlers do nothing; unlike ignored signals, they are not inherited by programs that a dataset starts.
    """
    parent = multiprocessing.parent_process()
    die_with_parent(parent.pid if parent is not None else None)
    for number in handled_signals():
        signal.signal(number, lambda *_: None)
    release_signals()


def make_picklable(error: Exception, *, where: str) -> Exception:
    """Return an error that can be sent to another process, with its traceback in this one as a note."""
    keep_frames(error, of=error)
    error.add_note(f"in {where}:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # noqa: BLE001 - the error's class may raise anything
        substitute = RuntimeError(f"{type(error).__name__}: {error}")
        substitute.__notes__ = error.__notes__
        keep_frames(substitute, of=error)
        return substitute
    return error


def _work(
    function: Callable[[Any], Any], initializer: Callable[[], object] | None, pipe: Connection, parent_end: Connection
) -> None:
    parent_end.close()
    follow_parent()
    if initializer is not None:
        initializer()
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        response: tuple[bool, Any]
        try:
            response = True, [function(item) for item in task]
        except BaseException as error:  # noqa: BLE001 - an exit too: the parent raises it
            response = False, make_picklable(as_exception(error), where="a process that reads")
        pipe.send(response)
