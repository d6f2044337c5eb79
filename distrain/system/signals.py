"""Defines the signals that request a process to stop, and the object that records such a request."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

SCHEDULER_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what SLURM and others send before they end a job


def handled_signals() -> list[signal.Signals]:
    """Return the stop signals of this process: without SIGHUP where it was ignored from the start (`nohup`)."""
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or is_handled(number)]


def is_handled(number: signal.Signals) -> bool:
    """Return whether a signal is not ignored."""
    return signal.getsignal(number) != signal.SIG_IGN


def ignore_signals() -> None:
    """Ignore the stop signals from now on: this process is ending, and its exit code is decided.

    During shutdown Python resets its handlers to the default, which kills the process; ignored signals stay ignored.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """Whether a stop was requested; a request cannot be withdrawn.

    A signal handler sets it, maybe during another call of `set`: a `threading.Event`, which has a lock, would deadlock.
    """

    def __init__(self) -> None:
        self._is_set = False
        self.scheduler_signal: signal.Signals | None = None  # the signal of a scheduler that requested the stop

    def set(self, number: int | None = None) -> None:
        """Request a stop, by a signal if it has a number."""
        self._is_set = True
        if number in SCHEDULER_SIGNALS and self.scheduler_signal is None:
            self.scheduler_signal = signal.Signals(number)

    def is_set(self) -> bool:
        """Whether a stop was requested."""
        return self._is_set


@contextmanager
def stopping() -> Iterator[StopRequest]:
    """Yield a request that the stop signals set while the block runs, for a loop that looks at it."""
    stop = StopRequest()
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in handled_signals()}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
