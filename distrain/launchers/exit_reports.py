"""Reports what the launcher itself knows of a rank's end: a rank that a signal has killed leaves no report."""

import re
import signal
import socket
import time

import psutil

from distrain.errors import ExitCode
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import read_errors
from distrain.runs.stacks import read_fatal_error
from distrain.runs.status import Heartbeat
from distrain.system.process import KILLED_BY_AGENT, state_of

# torchrun names the exit code and the process of every rank that failed, also of those that it has ended itself.
_EXIT = re.compile(r"exitcode\s*: (-?\d+)\)?(?: local_rank: \d+)? \(pid: (\d+)\)")
END_LINE = "exitcode: {code} (pid: {pid})"
# Where they are its forks, it names the first that it sees; distrain's agent writes a line of that form for each.
_ENDED_BY_AGENT = re.compile(r"(?:Sending|Terminating|Closing) process (\d+) (?:closing|via) signal")

_GRACE_S = 10.0  # ranks that come to the end of a run end their processes within it
_OWN_CODES = {ExitCode.STOPPED, KILLED_BY_AGENT}  # of ranks that nothing is wrong with
_SIGNAL_HINTS = {
    signal.SIGKILL: "the kernel does that when memory runs out",
    signal.SIGSEGV: "a fault in native code",
    signal.SIGBUS: "often a mapped file was cut short, or memory or /dev/shm is full",
    signal.SIGABRT: "native code gave up; the rank's log says why",
}


class ExitWatch:
    """Looks out for a rank of this machine whose process has ended while others wait for it.

    torchrun takes exit code 0 for success, and lets the others wait: for ever, as far as it is concerned.
    """

    def __init__(self, run: RunDirectory, *, log_start: int) -> None:
        self._run = run
        self._log_start = log_start
        self._seen_s: float | None = None

    def look(self) -> str | None:
        """Return what is to be told of such a rank, which is written to `errors/` as well; None without one."""
        gone = [beat for beat in _heartbeats_here(self._run) if state_of(beat.pid) in {None, psutil.STATUS_ZOMBIE}]
        if not gone or self._run.read_status().state in {"finished", "stopped"}:
            self._seen_s = None
            return None
        self._seen_s = self._seen_s or time.monotonic()
        if time.monotonic() - self._seen_s < _GRACE_S:
            return None
        report_killed_ranks(self._run, log_start=self._log_start, gone={beat.pid for beat in gone})
        ranks = ", ".join(str(beat.rank) for beat in gone)
        return f"the process of rank {ranks} has ended before the run has, and other ranks wait for it"


def report_killed_ranks(run: RunDirectory, *, log_start: int, gone: set[int] | None = None) -> None:
    """Write a report for each rank of this machine that could not, from the launcher's log and the last heartbeats.

    A signal has killed it, or its process has ended before the run had, with whatever code: the log names those of
    ranks that failed. Other processes that are `gone` have ended with code 0.
    """
    with run.launcher_log.open("rb") as file:
        file.seek(log_start)
        text = file.read().decode(errors="replace")
    ended_by_agent = set(_ENDED_BY_AGENT.findall(text))
    codes = {int(pid): int(code) for code, pid in _EXIT.findall(text) if pid not in ended_by_agent}
    codes = dict.fromkeys(gone or (), 0) | codes
    errors = read_errors(run)
    have_reported = {error["rank"] for error in errors}
    was_given_up = any(error["is_final"] for error in errors)  # for all ranks: one may have had no room to say so, too
    step = max([beat.step for beat in run.read_heartbeats()] + [error["step"] for error in errors], default=0)
    for heartbeat in _heartbeats_here(run):
        # Its last heartbeat may be a second old. Ranks go step by step together: another one may know better.
        newest = heartbeat.model_copy(update={"step": step})
        code = codes.get(heartbeat.pid)
        if code is None:
            continue
        if code < 0:
            message, stack = _in_words(-code), read_fatal_error(run, heartbeat.rank)
            if stack is not None:
                message += f"; its Python stack is in {run.stack(heartbeat.rank)}"
            write_rank_error(run, newest, kind="Killed", message=message, stack=stack, time_s=heartbeat.time)
        elif heartbeat.rank not in have_reported and code not in _OWN_CODES:
            message = (
                f"it ended with exit code {code} before the run had finished: its code, or a library, has ended it"
            )
            write_rank_error(
                run,
                newest,
                kind="Exited",
                message=message,
                stack=None,
                time_s=heartbeat.time,
                is_secondary=was_given_up,
            )


def write_rank_error(
    run: RunDirectory,
    heartbeat: Heartbeat,
    *,
    kind: str,
    message: str,
    stack: str | None,
    time_s: float | None,
    is_secondary: bool = False,
) -> None:
    """Write for a rank what it can no longer write itself; the traceback is its phase, and its stack if known."""
    run.write_error(
        {
            "time": time.time() if time_s is None else time_s,
            "rank": heartbeat.rank,
            "host": heartbeat.host,
            "clock": socket.gethostname() if time_s is None else heartbeat.host,  # whose time it is
            "step": heartbeat.step,
            "type": kind,
            "message": message,
            "exit_code": int(ExitCode.FAILED),
            "is_secondary": is_secondary,
            "is_final": False,
            "traceback": f"in phase {heartbeat.phase}; {'no stack is known' if stack is None else stack}",
        }
    )


def _heartbeats_here(run: RunDirectory) -> list[Heartbeat]:
    host = socket.gethostname()
    return [heartbeat for heartbeat in run.read_heartbeats() if heartbeat.host == host]


def _in_words(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    meaning = _SIGNAL_HINTS.get(signal.Signals(number)) if number in set(signal.Signals) else None
    return f"it was killed by {name}" + (f" ({meaning})" if meaning else "")
