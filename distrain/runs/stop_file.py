"""Writes and reads the stop file of a run: who requests it to stop, and whether it has."""

from contextlib import suppress
from typing import Literal, TypeAlias

from distrain.runs.directory import RunDirectory
from distrain.system.files import read_whole, write_atomically

StopReason: TypeAlias = Literal["stopped", "cancelled", "preempted"]  # by the user, for good, or for another run

_REASONS: tuple[StopReason, ...] = ("stopped", "cancelled", "preempted")


def request_stop(run: RunDirectory, reason: StopReason) -> None:
    """Request the run to stop at its next step; a request of the user outranks one of the queue."""
    if reason != "preempted" or not run.stop.exists():
        write_atomically(run.stop, reason)


def read_stop_reason(run: RunDirectory) -> StopReason | None:
    """Return why the run was requested to stop, or has stopped; None without a request, and for a signal."""
    for path in (run.stop, run.stop_answered):
        if found := read_whole(path, lambda text: next((one for one in _REASONS if one == text), None)):
            return found
    return None


def answer_stop(run: RunDirectory) -> None:
    """Take the stop request away, which is fulfilled, and keep its reason for the launcher."""
    with suppress(OSError):  # it was deleted, or the disk is full; the next start deletes both files
        run.stop.replace(run.stop_answered)


def forget_stop(run: RunDirectory) -> None:
    """Delete the stop request of an earlier attempt."""
    run.stop.unlink(missing_ok=True)
    run.stop_answered.unlink(missing_ok=True)
