"""Makes hosts of network namespaces: each has its own addresses and interfaces, joined by a cable of two ends."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.cli_runner import QUIET, command


@dataclass(frozen=True)
class Host:
    """One network namespace with one end of the cable."""

    name: str
    interface: str
    address: str

    def start(self, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
        """Begin `distrain fit` on this host."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command("fit", *arguments, *QUIET)],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def plug(self, state: str) -> None:
        """Set this end of the cable `up` or `down`."""
        _ip("-n", self.name, "link", "set", self.interface, state)

    def kill_all(self) -> None:
        """Kill every process on this host, as a power cut does."""
        for process in psutil.process_iter():
            try:
                is_here = Path(f"/proc/{process.pid}/ns/net").stat().st_ino == _namespace(self.name)
            except OSError:
                continue
            if is_here:
                process.kill()


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Yield two hosts that reach each other at 10.77.N.1 and 10.77.N.2; skips where this may not be done."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2, for network namespaces")
    number = os.getpid() % 250
    hosts = [Host(f"distrain-{os.getpid()}-{i}", f"cable{number}x{i}", f"10.77.{number}.{i + 1}") for i in (0, 1)]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    try:
        _ip("link", "add", hosts[0].interface, "type", "veth", "peer", "name", hosts[1].interface)
        for host in hosts:
            _ip("link", "set", host.interface, "netns", host.name)
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", host.name, "link", "set", "lo", "up")
            host.plug("up")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.kill_all()
            _ip("netns", "delete", host.name)


def _namespace(name: str) -> int:
    return Path(f"/run/netns/{name}").stat().st_ino


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
