"""Starts the process of a plan: a new program, or a fork of a process that has already imported torch."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol, TypeAlias

from distrain.launchers.plan import Plan
from distrain.system.process import die_with_parent, hold_signals

Messages: TypeAlias = "Connection[list[str], tuple[str, int]]"  # requests to a server, and its replies

_EXIT_TIMEOUT_S = 5.0  # a server that has no more work and does not exit in this time is killed


class ProcessHandle(Protocol):
    """The process of a plan; the part of `subprocess.Popen` that a launcher needs."""

    @property
    def pid(self) -> int:
        """The process id."""
        ...

    def poll(self) -> int | None:
        """Return the exit status, negative for the number of the signal that killed it; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        ...

    def kill(self) -> None:
        """Kill the process, if it is still running."""
        ...


class ProcessSpawner:
    """Starts one plan after the other; their standard error goes to the launcher's log.

    Each program gets its own session, so that Ctrl-C on the terminal only reaches the launcher.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._server: _Server | None = None

    def start(self, plan: Plan) -> ProcessHandle:
        """Start the plan's process; torchrun runs in a fork of a server that stays for the next attempt."""
        if plan.torchrun is None:
            return _open(plan.argv, plan.cwd, plan.env, self._log, unset=plan.unset)
        if self._server is not None and not self._server.serves(plan):
            self.close()
        if self._server is None:
            self._server = _Server(plan.cwd, plan.env, self._log)
        return self._server.fork(plan.torchrun)

    def close(self) -> None:
        """End the server that was kept for another attempt."""
        if self._server is not None:
            self._server.close()
            self._server = None


class _Server:
    """A process that runs torchrun in forks of itself, one at a time: `distrain.fork_server`."""

    def __init__(self, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self._cwd_and_env = cwd, dict(env)
        self._connection: Messages
        self._connection, other_end = Pipe()
        argv = (sys.executable, "-u", "-m", "distrain.fork_server", "--serve", str(other_end.fileno()))
        with other_end:
            self._process = _open(argv, cwd, env, log, keep=other_end.fileno())

    def serves(self, plan: Plan) -> bool:
        """Whether the next plan can run with the working directory and environment of the first one."""
        return self._process.poll() is None and self._cwd_and_env == (plan.cwd, dict(plan.env))

    def fork(self, arguments: tuple[str, ...]) -> "_Fork":
        with suppress(OSError):  # the server has failed: its exit code is read later
            self._connection.send(list(arguments))
        return _Fork(self._connection, self._process)

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Fork:
    """One run of torchrun in a fork of the server; its pid is that of the server until the server has forked."""

    def __init__(self, messages: Messages, server: subprocess.Popen[bytes]) -> None:
        self._messages = messages
        self._server = server
        self._pid: int | None = None
        self._code: int | None = None

    @property
    def pid(self) -> int:
        return self._pid or self._server.pid

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        while self._code is None:
            if not self._messages.poll(timeout):
                raise subprocess.TimeoutExpired("torchrun", timeout or 0)
            try:
                kind, number = self._messages.recv()
            except (EOFError, OSError):
                kind, number = "code", self._server.wait() or 1  # it ended before its work was done
            if kind == "pid":
                self._pid = number
            else:
                self._code = number
        return self._code

    def kill(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _open(
    argv: tuple[str, ...],
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    *,
    unset: tuple[str, ...] = (),
    keep: int | None = None,
) -> subprocess.Popen[bytes]:
    launcher = os.getpid()

    def prepare() -> None:
        hold_signals()
        die_with_parent(launcher)

    with log.open("ab") as errors:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env={**{name: value for name, value in os.environ.items() if name not in unset}, **env},
            stderr=errors,
            pass_fds=() if keep is None else (keep,),
            start_new_session=True,
            preexec_fn=prepare,
        )
