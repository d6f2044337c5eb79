"""A real terminal: what runs on it has it as its controlling one, and loses it when it is closed."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distrain.system.process import kill_below
from tests.cli_runner import wait_until


class Terminal:
    """One side of a pseudo-terminal; a thread reads what is shown on the other."""

    def __init__(self, columns: int) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._shown = b""
        self._is_closed = threading.Event()
        self._started: list[subprocess.Popen[bytes]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def shown(self) -> str:
        return self._shown.decode(errors="replace")

    def start(
        self, argv: Sequence[str], *, cwd: Path, prepare: Callable[[], object] = lambda: None
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, with this as its terminal; `prepare` is called in it before."""
        slave = self._slave

        def begin() -> None:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            prepare()

        process = subprocess.Popen(
            argv, cwd=cwd, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=begin
        )
        self._started.append(process)
        return process

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def wait_for(self, words: str, timeout_s: float = 120) -> None:
        wait_until(lambda: words in self.shown, f"{words!r} on the terminal", timeout_s)

    def close(self) -> None:
        """Take the terminal away from whatever runs on it."""
        if not self._is_closed.is_set():
            self._is_closed.set()
            self._reader.join()  # as long as it reads, the kernel holds the terminal
            os.close(self._slave)
            os.close(self._master)

    def kill(self) -> None:
        """Kill what is left of the programs that were started."""
        for process in self._started:
            if process.poll() is None:
                kill_below(process.pid)
                process.kill()
                process.wait()

    def _read(self) -> None:
        while not self._is_closed.is_set():
            if select.select([self._master], [], [], 0.02)[0]:
                self._shown += os.read(self._master, 65536)


@contextmanager
def terminal(columns: int = 80) -> Iterator[Terminal]:
    made = Terminal(columns)
    try:
        yield made
    finally:
        made.kill()
        made.close()
