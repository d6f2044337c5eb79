"""Turns signals into requests to stop a run: an object in this process, and the stop file for other processes."""

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
from distrain.system.signals import StopRequest, handled_signals


@contextmanager
def stop_on_signal(
    run: RunDirectory,
    *,
    kill: Callable[[], None],
    requested: StopRequest | None = None,
    is_last: bool = False,
    interrupts_work: bool = False,
) -> Iterator[StopRequest]:
    """Turn the stop signals into a stop request, including those that were held; a second SIGINT calls `kill`.

    Yields `requested`, or a new request. The signal handler sets it directly, so the request needs neither a thread nor
    a disk. The stop file is for the other processes; the first that answers it may delete it.
    With `is_last`, this process only reports the outcome after the block: the signals are ignored from then on, because
    a late one must not change the exit code. With `interrupts_work`, a signal also raises `KeyboardInterrupt`, for work
    that has nothing to save and need not wait for the end of a batch.
    """
    interrupts, request = 0, requested or StopRequest()

    def request_stop(number: int, _: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if number != signal.SIGINT or interrupts > 1:
            signal.signal(number, signal.SIG_IGN)  # repeated signals must not interrupt this handler
        request.set(number)
        if interrupts > 1:
            kill()
        try:
            run.stop.touch()
        except FileNotFoundError:  # the run directory does not exist yet, or was deleted
            pass
        except OSError:  # a full or read-only disk: the ranks of this node get a signal instead
            _signal_ranks(run)
        if interrupts_work:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals only to the main thread
        return
    previous = {number: signal.signal(number, request_stop) for number in handled_signals()}
    release_signals()
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if is_last else handler)


def fetch_signals(run: RunDirectory, requested: StopRequest) -> None:
    """Turn the held signals into stop requests, in a thread: a main thread that hangs in a collective runs no handler.

    Each signal sets `requested`, and writes the stop file for the other ranks. torchrun's agent sends SIGTERM to the
    remaining ranks when one has died. That is not a stop request: this rank cannot continue, and ends at once.
    """
    agent, handled = os.getppid(), handled_signals()  # held signals stay pending even where they are ignored
    guard = LoopGuard("the thread that waits for signals")

    def listen() -> None:
        while True:
            with guard:
                if signal.sigwaitinfo(handled).si_pid == agent:
                    end_process(KILLED_BY_AGENT)
                requested.set()
                with suppress(OSError):  # the run directory may have been deleted, or the disk be full
                    run.stop.touch()

    threading.Thread(target=listen, name="distrain-signals", daemon=True).start()


def _signal_ranks(run: RunDirectory) -> None:
    """Send SIGTERM to the ranks of this node except this process; they treat it as a stop request."""
    local_pids = [heartbeat.pid for heartbeat in run.read_heartbeats() if heartbeat.host == socket.gethostname()]
    signal_all([pid for pid in local_pids if pid != os.getpid()], signal.SIGTERM)
