"""Owns the plan, a command that can be printed as well as run, and the one function that runs it."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from distrain.errors import ExitCode
from distrain.rundir import RunDirectory

_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Plan:
    """What starts the worker: a command, the environment variables added to this process's, and a folder."""

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    in_process: bool = False

    def __str__(self) -> str:
        variables = "".join(f"{key}={shlex.quote(value)} " for key, value in self.env.items())
        return f"cd {shlex.quote(str(self.cwd))} && {variables}{shlex.join(self.argv)}"


def execute(plan: Plan, run: RunDirectory) -> ExitCode:
    """Run the plan to its end and return what its end means.

    A plan in this process calls the worker here, so that `breakpoint()` stops where the user put it. Others are child
    processes that share the terminal's output and die with this process; what they say of themselves on standard
    error goes to the launcher's log, since the ranks' own errors are read from the run directory.
    """
    if plan.in_process:
        from distrain.worker import run_worker  # the training plane: imported only where it runs

        if str(plan.cwd) not in sys.path:
            sys.path.insert(0, str(plan.cwd))  # as `python -m` does, for the user's own modules
        return run_worker(run)
    started = time.time()
    with run.launcher_log.open("ab") as log:
        child = subprocess.Popen(
            plan.argv,
            cwd=plan.cwd,
            env={**os.environ, **plan.env},
            stderr=log,
            start_new_session=True,  # the terminal's Ctrl-C comes to this process alone
            preexec_fn=die_with_parent,
        )
        with stop_on_signal(run):
            try:
                code = child.wait()
            except KeyboardInterrupt:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                return ExitCode.FAILED
    if code == 0:
        return ExitCode.FINISHED
    if run.read_status().state == "stopped":
        return ExitCode.STOPPED
    errors = run.read_errors(started)  # launchers flatten exit codes: the first rank's own error decides
    return ExitCode(errors[0]["exit_code"]) if errors else ExitCode.FAILED


@contextmanager
def stop_on_signal(run: RunDirectory) -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 into a stop request, and a second SIGINT into KeyboardInterrupt."""

    def request_stop(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and run.stop.exists():
            raise KeyboardInterrupt
        run.stop.touch()

    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    previous = {number: signal.signal(number, request_stop) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, so that a killed launcher leaves no orphan."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
