"""Reads what has ended the ranks of a run's newest attempt, in an order that does not depend on clocks that agree.

Each rank reports with the time of its own machine, and machines may differ by minutes. What belongs to an earlier
attempt is therefore known by name: the launcher lists it before it begins a new one. What only followed from another
rank's end comes last. Of the others, the first comes first, by times that are corrected by how far each machine's clock
was off: the launcher measures that, from when it sees what that machine writes.
"""

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from distrain.runs.directory import RunDirectory, write_atomically
from distrain.system.files import read_readable, read_whole, texts_of

_AGREE_S = 5.0  # a difference that is smaller is rather the time that a file takes to be seen

ErrorReport = dict[str, Any]


class _Attempt(BaseModel):
    """What the launcher knows of the reports: `errors/attempt.json`."""

    earlier: list[tuple[int, float]] = []  # rank and time of the reports of earlier attempts
    behind_s: dict[str, float] = {}  # by host: how far its clock is behind the launcher's


def read_errors(run: RunDirectory) -> list[ErrorReport]:
    """Return what has ended ranks in the newest attempt, the cause first."""
    attempt = _read_attempt(run)
    reports = [report for report in _read_all(run) if _key(report) not in attempt.earlier]

    def happened(report: ErrorReport) -> tuple[bool, float]:
        return report["is_secondary"], report["time"] + attempt.behind_s.get(_clock(report), 0.0)

    return sorted(reports, key=happened)


def begin_attempt(run: RunDirectory) -> None:
    """Take all reports that are there for those of earlier attempts; the launcher does so before it begins one."""
    earlier = [_key(report) for report in _read_all(run)]
    try:
        if earlier or run.attempt_errors.exists():
            _write_attempt(run, _Attempt(earlier=earlier))
    except OSError:  # a full disk: the reports can still be taken away
        for path in run.errors.glob("*.json"):
            with suppress(OSError):
                path.unlink(missing_ok=True)


class Clocks:
    """How far the clocks of other machines are behind this one's, by what is seen here of what they write."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._behind_s: dict[str, float] = {}

    def observe(self, host: str, time_s: float) -> None:
        """Note that something that `host` dated `time_s` has been seen just now, after it was written."""
        behind_s = self._now() - time_s
        self._behind_s[host] = min(behind_s, self._behind_s.get(host, behind_s))

    def write(self, run: RunDirectory) -> None:
        """Write down for `read_errors` which clocks are off, when the attempt is over."""
        attempt, own = _read_attempt(run), socket.gethostname()
        for report in read_errors(run):
            self.observe(_clock(report), report["time"])
        behind_s = {host: lag for host, lag in self._behind_s.items() if host != own and abs(lag) > _AGREE_S}
        if behind_s != attempt.behind_s:
            with suppress(OSError):  # a full disk: the times are taken as they are
                _write_attempt(run, attempt.model_copy(update={"behind_s": behind_s}))


def _read_all(run: RunDirectory) -> list[ErrorReport]:
    return read_readable(texts_of(run.errors.glob("rank-*.json")), json.loads)


def _read_attempt(run: RunDirectory) -> _Attempt:
    return read_whole(run.attempt_errors, _Attempt.model_validate_json) or _Attempt()


def _write_attempt(run: RunDirectory, attempt: _Attempt) -> None:
    write_atomically(run.attempt_errors, attempt.model_dump_json(indent=1))


def _clock(report: ErrorReport) -> str:
    """Return the host whose clock gave the report its time: the launcher writes some for ranks of other hosts."""
    clock: str = report["clock"] if "clock" in report else report["host"]
    return clock


def _key(report: ErrorReport) -> tuple[int, float]:
    return report["rank"], report["time"]
