"""Calls a function in separate processes: an item that kills one is reported, and the others are done.

Decoders and the user's own transforms and datasets may end their process: by a segmentation fault, by `os._exit`, or
because the kernel runs out of memory. One thread calls and waits for each process.
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
from distrain.system.signals import heard_signals

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_A_TASK = 32  # enough that handing a task over costs nothing, few enough that progress is smooth
TASKS_AHEAD = 4  # for each process


class KilledError(Exception):
    """The process died over an item twice; the message is the reason, for brackets."""


class Isolated(Generic[Item, Result]):
    """Calls `function` in `count` processes, which are forks of this one, each after a call of `begin` in it.

    Close it, or use it as a context manager.
    """

    def __init__(
        self, function: Callable[[Item], Result], count: int, *, begin: Callable[[], object] | None = None
    ) -> None:
        self._function = function
        self._begin = begin
        self._count = count
        self._lock = Lock()  # a process that is forked while another's pipe is made would hold its end
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
        self, items: Iterable[Item], *, items_a_task: int = ITEMS_A_TASK, tasks_ahead: int = TASKS_AHEAD
    ) -> Generator[Result | KilledError, None, None]:
        """Yield what the function gives for each item, in their order; raises what it raises.

        An item whose process dies over it twice gives a `KilledError`. At most `tasks_ahead` tasks for each process,
        of so many items each, are begun before what they gave is taken. Close it to leave the rest undone.
        """
        remaining, running = iter(items), deque[Future[list[Result | KilledError]]]()
        executor = ThreadPoolExecutor(self._count, "distrain-isolated")
        try:
            while True:
                while len(running) < self._count * tasks_ahead and (task := list(islice(remaining, items_a_task))):
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
            return [*self._ask(task)]
        except KilledError:  # by one of them, or from outside, as for the memory that others take
            return [self._do_alone(item) for item in task]

    def _do_alone(self, item: Item) -> Result | KilledError:
        try:
            return self._ask([item])[0]
        except KilledError as error:
            return error

    def _ask(self, task: list[Item]) -> list[Result]:
        process = self._idle.get()
        try:
            is_answer, found = process.ask(task)
        except _DeathError as death:
            process = self._replace(process)
            raise KilledError(f"reading it ends the process: it {death}") from None
        finally:
            self._idle.put(process)
        if not is_answer:
            raise found
        results: list[Result] = found
        return results

    def _start(self) -> "_Process":
        with self._lock:
            process = _Process(self._function, self._begin)
            self._all.add(process)
            return process

    def _replace(self, process: "_Process") -> "_Process":
        process.end()
        with self._lock:
            if self._is_closed:
                return process
            self._all.remove(process)
        return self._start()


class _DeathError(Exception):
    """A process has died; the message says how."""


class _Process:
    """One process, and the pipe to it."""

    def __init__(self, function: Callable[[Any], Any], begin: Callable[[], object] | None) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_work, args=(function, begin, theirs, self._pipe), name="distrain-reader", daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, task: list[Any]) -> tuple[bool, Any]:
        """Return whether a task gave results, and these, or the exception; raises `_DeathError`."""
        try:
            self._pipe.send(task)
            wait([self._pipe, self._process.sentinel])  # other processes may hold the pipe's end open
            if self._pipe.poll():
                answer: tuple[bool, Any] = self._pipe.recv()
                return answer
        except (EOFError, OSError):
            pass
        self._process.join()
        raise _DeathError(ending(self._process.exitcode))

    def end(self) -> None:
        """Kill the process; the pipe is left to whoever waits at it."""
        self._process.kill()
        self._process.join()


def ending(code: int | None) -> str:
    """Return how a process ended, by its exit code, in the words that follow its name."""
    if code is None:
        return "is gone"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def live_for_parent() -> None:
    """Die with the process that forked this one; leave to it a stop that is sent to the whole group.

    It may want what this one reads still, as a training that saves does. The handlers do nothing, and unlike ignored
    signals they are not handed on to programs that a dataset starts.
    """
    parent = multiprocessing.parent_process()
    die_with_parent(parent.pid if parent is not None else None)
    for number in heard_signals():
        signal.signal(number, lambda *_: None)
    release_signals()


def portable(error: Exception, *, where: str) -> Exception:
    """Return an error that another process can raise, with the traceback of this one as a note."""
    keep_frames(error, of=error)
    error.add_note(f"in {where}:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # noqa: BLE001 - whatever the error's own class does
        stand_in = RuntimeError(f"{type(error).__name__}: {error}")
        stand_in.__notes__ = error.__notes__
        keep_frames(stand_in, of=error)
        return stand_in
    return error


def _work(
    function: Callable[[Any], Any], begin: Callable[[], object] | None, pipe: Connection, of_parent: Connection
) -> None:
    of_parent.close()
    live_for_parent()
    if begin is not None:
        begin()
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[bool, Any]
        try:
            answer = True, [function(item) for item in task]
        except BaseException as error:  # noqa: BLE001 - also an exit: it is raised where the answer is waited for
            answer = False, portable(as_exception(error), where="a process that reads")
        pipe.send(answer)
