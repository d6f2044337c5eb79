"""Names the signals that ask a process to stop, and holds the request."""

import signal

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def heard_signals() -> list[signal.Signals]:
    """Return those that ask this process to stop: not SIGHUP where it was ignored from the start (`nohup`)."""
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or is_heard(number)]


def is_heard(number: signal.Signals) -> bool:
    """Return whether a signal is not ignored."""
    return signal.getsignal(number) != signal.SIG_IGN


def ignore_signals() -> None:
    """Ignore them from now on: this process is ending, and its exit code is decided.

    Python resets its own handlers to the default, which is to die, while it shuts down; what is ignored stays ignored.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """Whether a stop was requested; it cannot be taken back.

    A signal handler sets it, maybe in the middle of another call of `set`: a `threading.Event`, which takes a lock,
    would then wait for itself.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Request a stop."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether a stop was requested."""
        return self._is_set
