"""Explains the attempts of a run: from which step to which, on how many processes, and why each ended."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distrain.config import Recipe
from distrain.messages import counted
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import read_all_errors, read_errors
from distrain.runs.liveness import LIVE_STATES
from distrain.runs.status import Attempt, Changes, Status

_LATE_S = 60.0  # a launcher may report this long after the last heartbeat of an attempt why it died
_KEYS = {"type", "message", "step", "traceback"}  # of a report that is not damaged
_ENDS = {
    "stopped": "stopped on request, after a save",
    "preempted": "preempted, after a save",
    "cancelled": "cancelled",
    "timed out": "ended by SLURM at its time limit",
    "died": "its processes were killed, or their machine failed",
}


@dataclass(frozen=True)
class ExplainedAttempt:
    """One start of a run. `error` is the report of the rank that failed first, where there is one."""

    attempt: Attempt
    state: str  # also of an attempt that died and could not write it
    why: str  # it ended, or that it runs
    error: Mapping[str, Any] | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it runs."""
        return None if self.attempt.ended is None else max(0.0, self.attempt.ended - self.attempt.started)

    @property
    def changes(self) -> str:
        """What changed in the recipe before it, as text; empty where nothing did."""
        return describe_changes(self.attempt.changes)


def explain_attempts(run: RunDirectory, status: Status, *, state: str) -> list[ExplainedAttempt]:
    """Return the attempts of a run, the first one first; `state` is that of the run, from `liveness.read_states`."""
    reports, newest = read_all_errors(run), read_errors(run)
    explained = []
    for number, attempt in enumerate(status.attempts, start=1):
        is_newest = number == len(status.attempts)
        ended = end_of(attempt, state if is_newest else attempt.state)
        errors = newest if is_newest else _find_reports(attempt, reports)
        whole = [error for error in errors if error.keys() >= _KEYS]
        error = whole[0] if whole and ended in {"failed", "died"} else None
        explained.append(ExplainedAttempt(attempt, ended, _explain(attempt, ended, error, status), error))
    return explained


def end_of(attempt: Attempt, state: str) -> str:
    """Return how an attempt ended, by the `state` of its run if it is the newest one: one that died could not write it.

    One that finished did, even if the run was then extended and waits for its next attempt.
    """
    return attempt.state if attempt.state == "finished" else state


def describe_changes(changes: Changes) -> str:
    """Return the old and new values of a recipe in one line."""
    return ", ".join(f"{key} {_text(change.old)} -> {_text(change.new)}" for key, change in changes.items())


def describe_preemptions(status: Status, read_recipe: Callable[[], Recipe]) -> str | None:
    """Return how often the run was preempted, and what that means for its result; None where it never was."""
    count = sum(attempt.state == "preempted" for attempt in status.attempts[:-1])
    if not count:
        return None
    times = "once" if count == 1 else counted(count, "time")
    result = "the result is the same as without"
    if len({attempt.world_size for attempt in status.attempts}) > 1 and not read_recipe().train.exact:
        result = "the result differs by rounding, since the number of processes changed (train.exact prevents this)"
    return f"{times}; {result}"


def _find_reports(attempt: Attempt, reports: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the reports from the time of an attempt, the cause first; each rank has only its newest one."""
    if attempt.ended is None:
        return []
    return [report for report in reports if attempt.started <= report["time"] <= attempt.ended + _LATE_S]


def _explain(attempt: Attempt, state: str, error: Mapping[str, Any] | None, status: Status) -> str:
    if error is not None:
        return f"{error['type']}: {error['message']} (rank {error['rank']} on {error['host']}, step {error['step']})"
    if state in LIVE_STATES:
        return "has not ended"
    if state == "finished":
        is_early = attempt is status.attempts[-1] and not status.changes and attempt.last_step < status.total_steps
        return f"ended by a limit of the recipe, before {counted(status.total_steps, 'step')}" if is_early else "done"
    return _ENDS.get(state, "ended without an error report")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
