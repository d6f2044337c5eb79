"""Owns how a plan becomes a process: a program of its own, or a fork of one that has loaded torch already."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from distrain.launchers.plan import Plan
from distrain.process import die_with_parent, hold_signals

_LEAVE_S = 5.0  # a server that has nothing to do any more and is still there after this is killed


class Child(Protocol):
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


class Starter:
    """Starts one plan after the other; what they say on standard error goes to the launcher's log.

    Programs get a session of their own: the terminal's Ctrl-C comes to the launcher alone.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._server: _Server | None = None

    def start(self, plan: Plan) -> Child:
        """Start the plan's process, torchrun's in a fork of a server that stays for the next attempt."""
        if plan.torchrun is None:
            return _open(plan.argv, plan.cwd, plan.env, self._log)
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
    """A process that runs torchrun in forks of itself, one at a time: `distrain.launchers.agent`."""

    def __init__(self, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self._place = cwd, dict(env)
        self._socket, theirs = socket.socketpair()
        argv = (sys.executable, "-u", "-m", "distrain.launchers.agent", "--serve", str(theirs.fileno()))
        with theirs:
            self._process = _open(argv, cwd, env, log, keep=theirs.fileno())
        self._lines = _Lines(self._socket)

    def serves(self, plan: Plan) -> bool:
        """Whether the next plan can be run in the place and the environment of the first one."""
        return self._process.poll() is None and self._place == (plan.cwd, dict(plan.env))

    def fork(self, arguments: tuple[str, ...]) -> "_Fork":
        with suppress(BrokenPipeError):  # it has failed: its end says so
            self._socket.sendall(json.dumps(arguments).encode() + b"\n")
        return _Fork(self._lines, self._process)

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Fork:
    """One run of torchrun in a fork of the server; before the server has loaded torch, it is the server itself."""

    def __init__(self, lines: "_Lines", server: subprocess.Popen[bytes]) -> None:
        self._lines = lines
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
            message = self._lines.next(timeout)
            if message is None:
                self._code = self._server.wait() or 1  # it has ended before its work has
            self._pid = (message or {}).get("pid", self._pid)
            self._code = (message or {}).get("code", self._code)
        return self._code

    def kill(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class _Lines:
    """The server's messages, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._text = b""

    def next(self, timeout: float | None) -> dict[str, int] | None:
        """Return the next message, and None once there is none any more; raises `subprocess.TimeoutExpired`."""
        while b"\n" not in self._text:
            readable, _, _ = select.select([self._connection], [], [], timeout)
            if not readable:
                raise subprocess.TimeoutExpired("torchrun", timeout or 0)
            try:
                received = self._connection.recv(4096)
            except ConnectionResetError:
                return None
            if not received:
                return None
            self._text += received
        line, _, self._text = self._text.partition(b"\n")
        message: dict[str, int] = json.loads(line)
        return message


def _open(
    argv: tuple[str, ...], cwd: Path, env: Mapping[str, str], log: Path, *, keep: int | None = None
) -> subprocess.Popen[bytes]:
    launcher = os.getpid()

    def prepare() -> None:
        hold_signals()
        die_with_parent(launcher)

    with log.open("ab") as errors:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env={**os.environ, **env},
            stderr=errors,
            pass_fds=() if keep is None else (keep,),
            start_new_session=True,
            preexec_fn=prepare,
        )
