"""Owns what the launcher itself knows of a rank's end: a rank that a signal has killed leaves no report."""

import re
import signal
import socket
import time

from distrain.errors import ExitCode
from distrain.rundir import Heartbeat, RunDirectory
from distrain.stacks import read_fatal_error

# torchrun names the exit code and the process of every rank that failed, also of those that it has ended itself.
_EXIT = re.compile(r"exitcode\s*: -(\d+)\)?(?: local_rank: \d+)? \(pid: (\d+)\)")
END_LINE = "exitcode: {code} (pid: {pid})"
# Where they are its forks, it names the first that it sees; distrain's agent writes a line of that form for each.
_ENDED_BY_AGENT = re.compile(r"(?:Sending|Terminating|Closing) process (\d+) (?:closing|via) signal")

_OFTEN_MEANS = {
    signal.SIGKILL: "the kernel does that when memory runs out",
    signal.SIGSEGV: "a fault in native code",
    signal.SIGBUS: "often a mapped file was cut short, or memory or /dev/shm is full",
    signal.SIGABRT: "native code gave up; the rank's log says why",
}


def find_deaths(run: RunDirectory, *, log_start: int, since: float) -> None:
    """Write a report for each rank that was killed by a signal, from the launcher's log and the last heartbeats."""
    with run.launcher_log.open("rb") as file:
        file.seek(log_start)
        text = file.read().decode(errors="replace")
    ended_by_agent = set(_ENDED_BY_AGENT.findall(text))
    signals = {int(pid): int(number) for number, pid in _EXIT.findall(text) if pid not in ended_by_agent}
    heartbeats = run.read_heartbeats()
    step = max([beat.step for beat in heartbeats] + [error["step"] for error in run.read_errors(since)], default=0)
    for heartbeat in heartbeats:
        if heartbeat.pid in signals and heartbeat.host == socket.gethostname():
            # Its last heartbeat may be a second old. Ranks go step by step together: another one may know better.
            newest = heartbeat.model_copy(update={"step": step})
            message, stack = _in_words(signals[heartbeat.pid]), read_fatal_error(run, heartbeat.rank)
            if stack is not None:
                message += f"; its Python stack is in {run.stack(heartbeat.rank)}"
            report_end(run, newest, kind="Killed", message=message, stack=stack, time_s=heartbeat.time)


def report_end(
    run: RunDirectory, heartbeat: Heartbeat, *, kind: str, message: str, stack: str | None, time_s: float | None
) -> None:
    """Write for a rank what it can no longer write itself; the traceback is its phase, and its stack if known."""
    run.write_error(
        {
            "time": time.time() if time_s is None else time_s,
            "rank": heartbeat.rank,
            "host": heartbeat.host,
            "step": heartbeat.step,
            "type": kind,
            "message": message,
            "exit_code": int(ExitCode.FAILED),
            "is_consequence": False,
            "is_final": False,
            "traceback": f"in phase {heartbeat.phase}; {'no stack is known' if stack is None else stack}",
        }
    )


def _in_words(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    meaning = _OFTEN_MEANS.get(signal.Signals(number)) if number in set(signal.Signals) else None
    return f"it was killed by {name}" + (f" ({meaning})" if meaning else "")
