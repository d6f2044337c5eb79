"""Turns a plan into a process: a program of its own, or a fork of one that has loaded torch already."""

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

Messages: TypeAlias = "Connection[list[str], tuple[str, int]]"  # requests to a server, and what becomes of them

_LEAVE_S = 5.0  # a server that has nothing to do any more and is still there after this is killed


class ProcessHandle(Protocol):
    """What runs a plan; the part of `subprocess.Popen` that a launcher needs."""

    @property
    def pid(self) -> int:
        """Its process."""
        ...

    def poll(self) -> int | None:
        """Return the exit status, minus the signal's number where one has killed it; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        ...

    def kill(self) -> None:
        """Kill it, if it is still there."""
        ...


class ProcessSpawner:
    """Starts one plan after the other; what they say on standard error goes to the launcher's log.

    Programs get a session of their own: the terminal's Ctrl-C comes to the launcher alone.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._server: _Server | None = None

    def start(self, plan: Plan) -> ProcessHandle:
        """Start the plan's process, torchrun's in a fork of a server that stays for the next attempt."""
        if plan.torchrun is None:
            return _open(plan.argv, plan.cwd, plan.env, self._log, unset=plan.unset)
        if self._server is not None and not self._server.serves(plan):
            self.close()
        if self._server is None:
            self._server = _Server(plan.cwd, plan.env, self._log)
        return self._server.fork(plan.torchrun)

    def close(self) -> None:
        """End what was kept for another attempt."""
        if self._server is not None:
            self._server.close()
            self._server = None


class _Server:
    """A process that runs torchrun in forks of itself, one at a time: `distrain.fork_server`."""

    def __init__(self, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self._place = cwd, dict(env)
        self._connection: Messages
        self._connection, theirs = Pipe()
        argv = (sys.executable, "-u", "-m", "distrain.fork_server", "--serve", str(theirs.fileno()))
        with theirs:
            self._process = _open(argv, cwd, env, log, keep=theirs.fileno())

    def serves(self, plan: Plan) -> bool:
        """Whether the next plan can be run in the place and the environment of the first one."""
        return self._process.poll() is None and self._place == (plan.cwd, dict(plan.env))

    def fork(self, arguments: tuple[str, ...]) -> "_Fork":
        with suppress(OSError):  # it has failed: its end says so
            self._connection.send(list(arguments))
        return _Fork(self._connection, self._process)

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Fork:
    """One run of torchrun in a fork of the server; before the server has loaded torch, it is the server itself."""

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
                kind, number = "code", self._server.wait() or 1  # it has ended before its work has
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
