"""Combines the state of a rank, the heartbeat that reports it, and the listener for stop requests."""

from types import TracebackType
from typing import Self

from distrain.runs.directory import RunDirectory
from distrain.runs.status import State
from distrain.system.loop_guard import LoopGuard
from distrain.system.signals import StopRequest
from distrain.training.heartbeat import HeartbeatWriter
from distrain.training.stop_listener import StopListener
from distrain.training.train_state import TrainState


class RankMonitor:
    """The state of a rank, and the threads that write it and listen for a stop; the context manager runs both."""

    def __init__(self, run: RunDirectory, rank: int, *, stop: StopRequest | None = None) -> None:
        """`stop` is set when a stop request arrives, by the listener's thread or a signal handler."""
        self.state = TrainState()
        self.stop = StopListener(run, stop)
        self.heartbeat = HeartbeatWriter(run, rank, self.state)

    def __enter__(self) -> Self:
        self.stop.__enter__()
        self.heartbeat.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.heartbeat.__exit__(kind, error, trace)
        finally:
            self.stop.__exit__(kind, error, trace)

    def report(self, state: State | None = None) -> None:
        """Write the status of the run now, with a new state if one is given, without waiting for the next heartbeat."""
        self.heartbeat.write_status(state)

    def report_start(self) -> None:
        """Write the first heartbeat and status of an attempt now, since it may end within a second."""
        with LoopGuard("writing the first heartbeat"):
            self.heartbeat.write_heartbeat()
        self.report()
