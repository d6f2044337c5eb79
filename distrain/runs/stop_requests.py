"""Turns signals into requests to stop a run: an object in this process, and the stop file for the others."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from distrain.runs.directory import RunDirectory
from distrain.system.exits import end_process
from distrain.system.loop_guard import LoopGuard
from distrain.system.process import KILLED_BY_AGENT, release_signals, signal_all
from distrain.system.signals import StopRequest, heard_signals


@contextmanager
def stop_on_signal(
    run: RunDirectory,
    *,
    kill: Callable[[], None],
    requested: StopRequest | None = None,
    is_last: bool = False,
    interrupts_work: bool = False,
) -> Iterator[StopRequest]:
    """Turn the stop signals into a stop request, also those that were held; a second SIGINT calls `kill`.

    Yields `requested`, or a request of its own. The handler itself sets it, so that the request needs neither a thread
    nor a disk to be heard. The stop file is there for the other processes; the first that answers it may delete it.
    With `is_last` this process has nothing left to do after the block but to tell how it went: the signals are ignored
    from then on, since one that comes late must not change the exit code. With `interrupts_work` a signal also raises
    `KeyboardInterrupt`, for work that has nothing to save and need not wait for the end of a batch.
    """
    interrupts, was_asked = 0, requested or StopRequest()

    def request_stop(number: int, _: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if number != signal.SIGINT or interrupts > 1:
            signal.signal(number, signal.SIG_IGN)  # it has said all it can: a burst must not interrupt this handler
        was_asked.set()
        if interrupts > 1:
            kill()
        try:
            run.stop.touch()
        except FileNotFoundError:  # a run directory that is not there yet, or not any more
            pass
        except OSError:  # a full or read-only disk: the ranks of this machine are asked directly
            _signal_ranks(run)
        if interrupts_work:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield was_asked  # Python delivers signals to the main thread alone
        return
    previous = {number: signal.signal(number, request_stop) for number in heard_signals()}
    release_signals()
    try:
        yield was_asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if is_last else handler)


def fetch_signals(run: RunDirectory, requested: StopRequest) -> None:
    """Turn the held signals into stop requests, in a thread: a main thread that hangs in a collective runs no handler.

    Each sets `requested`, and writes the stop file for the other ranks. torchrun's agent sends SIGTERM to the remaining
    ranks when one has died. That does not ask for a stop: this rank can do nothing any more, and ends at once.
    """
    agent, heard = os.getppid(), heard_signals()  # a signal that is held waits also where it is ignored
    guard = LoopGuard("the thread that waits for signals")

    def listen() -> None:
        while True:
            with guard:
                if signal.sigwaitinfo(heard).si_pid == agent:
                    end_process(KILLED_BY_AGENT)
                requested.set()
                with suppress(OSError):  # the run directory may be gone by now, or the disk full
                    run.stop.touch()

    threading.Thread(target=listen, name="distrain-signals", daemon=True).start()


def _signal_ranks(run: RunDirectory) -> None:
    """Send SIGTERM to the ranks of this machine, which take it as a stop request; this process is left out."""
    here = [heartbeat.pid for heartbeat in run.read_heartbeats() if heartbeat.host == socket.gethostname()]
    signal_all([pid for pid in here if pid != os.getpid()], signal.SIGTERM)
