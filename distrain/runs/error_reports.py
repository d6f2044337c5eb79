"""Reads the error reports of a run's newest attempt, the cause first, even where clocks of nodes disagree.

Each report has the time of its own node, and these clocks may differ by minutes. Before the launcher begins an
attempt, it therefore lists the reports of earlier attempts. Errors that only follow from the end of another rank come
last. The others are ordered by corrected times: the launcher measures how far the clock of each node is off, by
comparing the times in its files with the moment at which it sees them.
"""

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from distrain.runs.directory import RunDirectory
from distrain.system.files import read_readable, read_whole, texts_of, write_atomically

_CLOCK_TOLERANCE_S = 5.0  # smaller differences are probably the delay until a file becomes visible

ErrorReport = dict[str, Any]
_KEYS = ("rank", "host", "time", "is_secondary")  # by which reports are ordered


class _Attempt(BaseModel):
    """What the launcher knows about the reports: `errors/attempt.json`."""

    earlier: list[tuple[int, float]] = []  # rank and time of the reports of earlier attempts
    behind_s: dict[str, float] = {}  # by host: how far its clock is behind the launcher's


def read_errors(run: RunDirectory) -> list[ErrorReport]:
    """Return the error reports of the newest attempt, the cause first."""
    attempt = _read_attempt(run)
    reports = [report for report in _read_all(run) if _key(report) not in attempt.earlier]

    def order(report: ErrorReport) -> tuple[bool, float]:
        return report["is_secondary"], report["time"] + attempt.behind_s.get(_clock(report), 0.0)

    return sorted(reports, key=order)


def describe_failure(report: ErrorReport) -> str:
    """Return where and why a run has failed, as text."""
    place = f"at step {report['step']} on rank {report['rank']} ({report['host']})"
    return f"failed {place}: {report['type']}: {report['message']}"


def read_all_errors(run: RunDirectory) -> list[ErrorReport]:
    """Return the error reports of all attempts, the cause of each first; each rank has one, its newest."""
    return sorted(_read_all(run), key=lambda report: (report["is_secondary"], report["time"]))


def begin_attempt(run: RunDirectory) -> None:
    """Mark all existing reports as those of earlier attempts; the launcher does so before it begins an attempt."""
    earlier = [_key(report) for report in _read_all(run)]
    try:
        if earlier or run.attempt_errors.exists():
            _write_attempt(run, _Attempt(earlier=earlier))
    except OSError:  # a full disk: the reports can still be deleted
        for path in run.errors.glob("*.json"):
            with suppress(OSError):
                path.unlink(missing_ok=True)


class Clocks:
    """Measures how far the clocks of other nodes are behind this one, from the times in the files they write."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._behind_s: dict[str, float] = {}

    def observe(self, host: str, time_s: float) -> None:
        """Record that something that `host` wrote with the time `time_s` has just been seen here."""
        behind_s = self._now() - time_s
        self._behind_s[host] = min(behind_s, self._behind_s.get(host, behind_s))

    def write(self, run: RunDirectory) -> None:
        """Save for `read_errors` which clocks are off, when the attempt is over."""
        attempt, this_host = _read_attempt(run), socket.gethostname()
        for report in read_errors(run):
            self.observe(_clock(report), report["time"])
        behind_s = {
            host: lag for host, lag in self._behind_s.items() if host != this_host and abs(lag) > _CLOCK_TOLERANCE_S
        }
        if behind_s != attempt.behind_s:
            with suppress(OSError):  # a full disk: the times are used uncorrected
                _write_attempt(run, attempt.model_copy(update={"behind_s": behind_s}))


def _read_all(run: RunDirectory) -> list[ErrorReport]:
    return read_readable(texts_of(run.errors.glob("rank-*.json")), _parse)


def _parse(text: str) -> ErrorReport:
    """Return a report; raises `KeyError` or `TypeError` where it is not one."""
    report: ErrorReport = json.loads(text)
    return report | {key: report[key] for key in _KEYS}


def _read_attempt(run: RunDirectory) -> _Attempt:
    return read_whole(run.attempt_errors, _Attempt.model_validate_json) or _Attempt()


def _write_attempt(run: RunDirectory, attempt: _Attempt) -> None:
    write_atomically(run.attempt_errors, attempt.model_dump_json(indent=1))


def _clock(report: ErrorReport) -> str:
    """Return the host whose clock dated the report: the launcher writes some reports for ranks of other hosts."""
    clock: str = report["clock"] if "clock" in report else report["host"]
    return clock


def _key(report: ErrorReport) -> tuple[int, float]:
    return report["rank"], report["time"]
