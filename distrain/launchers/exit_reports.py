"""Writes error reports for ranks that could not do so themselves, such as those killed by a signal."""

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

# torchrun prints exit code and process id of every failed rank, including those that it has ended itself.
_EXIT = re.compile(r"exitcode\s*: (-?\d+)\)?(?: local_rank: \d+)? \(pid: (\d+)\)")
END_LINE = "exitcode: {code} (pid: {pid})"
# If the ranks are its forks, it prints only the first that it sees; distrain.fork_server prints such a line for each.
_ENDED_BY_AGENT = re.compile(r"(?:Sending|Terminating|Closing) process (\d+) (?:closing|via) signal")

_GRACE_S = 10.0  # at the end of a run, the processes of all ranks exit in this time
_EXPECTED_CODES = {ExitCode.STOPPED, KILLED_BY_AGENT}  # exit codes of ranks without an error
_SIGNAL_HINTS = {
    signal.SIGKILL: "the kernel does that when memory runs out",
    signal.SIGSEGV: "a memory fault in native code",
    signal.SIGBUS: "often a mapped file was truncated, or memory or /dev/shm is full",
    signal.SIGABRT: "native code aborted; see the rank's log",
}


class ExitWatch:
    """Detects a rank of this node whose process has ended while others wait for it.

    torchrun takes exit code 0 for success, and lets the others wait forever.
    """

    def __init__(self, run: RunDirectory, *, log_start: int) -> None:
        self._run = run
        self._log_start = log_start
        self._seen_s: float | None = None

    def check(self) -> str | None:
        """Return a message on such a rank, and write an error report for it; None without one."""
        gone = [beat for beat in _local_heartbeats(self._run) if state_of(beat.pid) in {None, psutil.STATUS_ZOMBIE}]
        if not gone or self._run.read_status().state in {"finished", "stopped"}:
            self._seen_s = None
            return None
        self._seen_s = self._seen_s or time.monotonic()
        if time.monotonic() - self._seen_s < _GRACE_S:
            return None
        report_killed_ranks(self._run, log_start=self._log_start, gone={beat.pid for beat in gone})
        ranks = ", ".join(str(beat.rank) for beat in gone)
        return f"the process of rank {ranks} ended before the run, and other ranks wait for it"


def report_killed_ranks(run: RunDirectory, *, log_start: int, gone: set[int] | None = None) -> None:
    """Write a report for each rank of this node that could not, from the launcher's log and the last heartbeats.

    Such a rank was killed by a signal, or its process ended before the run with any exit code. The log contains the
    codes of failed ranks; other processes that are `gone` ended with code 0.
    """
    with run.launcher_log.open("rb") as file:
        file.seek(log_start)
        text = file.read().decode(errors="replace")
    ended_by_agent = set(_ENDED_BY_AGENT.findall(text))
    codes = {int(pid): int(code) for code, pid in _EXIT.findall(text) if pid not in ended_by_agent}
    codes = dict.fromkeys(gone or (), 0) | codes
    errors = read_errors(run)
    have_reported = {error["rank"] for error in errors}
    has_final_error = any(error["is_final"] for error in errors)  # other ranks may have been unable to write theirs
    step = max([beat.step for beat in run.read_heartbeats()] + [error["step"] for error in errors], default=0)
    for heartbeat in _local_heartbeats(run):
        # Its last heartbeat may be a second old. All ranks are at the same step, which another one may report better.
        newest = heartbeat.model_copy(update={"step": step})
        code = codes.get(heartbeat.pid)
        if code is None:
            continue
        if code < 0:
            message, stack = _describe_signal(-code), read_fatal_error(run, heartbeat.rank)
            if stack is not None:
                message += f"; its Python stack is in {run.stack(heartbeat.rank)}"
            write_rank_error(run, newest, kind="Killed", message=message, stack=stack, time_s=heartbeat.time)
        elif heartbeat.rank not in have_reported and code not in _EXPECTED_CODES:
            message = f"it exited with code {code} before the run had finished: its code, or a library, called exit"
            write_rank_error(
                run,
                newest,
                kind="Exited",
                message=message,
                stack=None,
                time_s=heartbeat.time,
                is_secondary=has_final_error,
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
    """Write the error report of a rank in its place; the traceback is its phase, and its stack if known."""
    run.write_error(
        {
            "time": time.time() if time_s is None else time_s,
            "rank": heartbeat.rank,
            "host": heartbeat.host,
            "clock": socket.gethostname() if time_s is None else heartbeat.host,  # the host whose clock gave the time
            "step": heartbeat.step,
            "type": kind,
            "message": message,
            "exit_code": int(ExitCode.FAILED),
            "is_secondary": is_secondary,
            "is_final": False,
            "traceback": f"in phase {heartbeat.phase}; {'its stack is unknown' if stack is None else stack}",
        }
    )


def _local_heartbeats(run: RunDirectory) -> list[Heartbeat]:
    host = socket.gethostname()
    return [heartbeat for heartbeat in run.read_heartbeats() if heartbeat.host == host]


def _describe_signal(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    meaning = _SIGNAL_HINTS.get(signal.Signals(number)) if number in set(signal.Signals) else None
    return f"it was killed by {name}" + (f" ({meaning})" if meaning else "")
