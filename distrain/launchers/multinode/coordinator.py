"""Runs the rendezvous of several nodes on the side of the coordinator, which alone writes the run directory."""

import json
import secrets
import socket
import time
from typing import Any

from distrain.config.profile import Profile
from distrain.errors import ExitCode, LaunchError
from distrain.launchers.multinode.connection import PeerConnection
from distrain.launchers.multinode.group import LocalNode
from distrain.launchers.plan import Plan
from distrain.runs.directory import write_atomically
from distrain.system.network import split_endpoint
from distrain.system.signals import StopRequest

POLL_S = 0.1
REPORT_INTERVAL_S = 10.0  # between two words on who is missing
JOIN_TIMEOUT_S = 300.0  # how long the machines wait for each other before they give up
LAST_CALL_S = 10.0  # an elastic run waits so long for more machines than it needs
GRACE_S = 10.0  # an attempt that is over elsewhere ends here by itself within this time, or is ended
LEAVE_TIMEOUT_S = 30.0  # how long another machine may take to end what it has started


class Coordinator:
    """Machine 0: takes in the others, gives the word to begin, and decides after each attempt how the run goes on."""

    is_coordinator = True

    def __init__(self, local: LocalNode) -> None:
        """Listen at the rendezvous."""
        self._local = local
        self._profile, self._run, self._tell = local.profile, local.run, local.tell
        self._members: dict[int, PeerConnection] = {}
        self._names = {0: socket.gethostname()}
        self._pending: list[PeerConnection] = []  # they have not said yet who they are
        self._in_attempt: set[int] = set()
        self._ended: dict[int, float] = {}
        self._grown_ns: int | None = None  # when this attempt was stopped for more machines; 0 if a user stops it too
        self._listener = _listen(local.profile)

    def join(self, was_asked: StopRequest) -> Plan | None:
        """Wait for the other machines, give the word to begin, and return what to start here."""
        begun = arrival = told = time.monotonic()
        least = self._profile.min_nodes or self._profile.nodes
        while (here := len(self._members) + 1) < self._profile.nodes:
            self._receive()
            now = time.monotonic()
            if was_asked.is_set() or self._run.stop.exists():
                return None
            if len(self._members) + 1 != here:
                arrival = now
            elif here >= least and now - arrival >= LAST_CALL_S:
                break
            if now - told >= REPORT_INTERVAL_S:
                told = now
                self._tell_all(self._missing_nodes())
            if now - begun >= JOIN_TIMEOUT_S:
                raise LaunchError(f"given up after {now - begun:.0f} s: {self._missing_nodes()}")
            time.sleep(POLL_S)
        return self._begin()

    def poll(self) -> str | None:
        """Return which machine is lost or has ended; a machine that comes back has all of them stop and begin again."""
        self._receive()
        if lost := self._in_attempt - self._members.keys():
            return f"node {min(lost)} ({self._names[min(lost)]}) is lost"
        now = time.monotonic()
        for node, ended in self._ended.items():
            if now - ended > GRACE_S:
                return f"the processes of node {node} ({self._names[node]}) have ended"
        self._request_regroup()
        return None

    def leave(self) -> None:
        """Tell the others that it is over, and wait for them."""
        for node in self._in_attempt & self._members.keys():
            self._members[node].send(ended=True)
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        while self._in_attempt & self._members.keys() - self._ended.keys() and time.monotonic() < deadline:
            self._receive()
            time.sleep(POLL_S)
        for node in self._in_attempt - self._ended.keys():
            self._remove(node, "does not end its processes")

    def decide(self, end: ExitCode | None) -> ExitCode | None:
        """Decide for all; a stop that was only to let more machines in is none."""
        if self._grown_ns and end == ExitCode.STOPPED:
            end = None
        for line in self._members.values():
            line.send(verdict=end, is_over=end is not None)
        self._in_attempt.clear()
        return end

    def close(self) -> None:
        """Leave the others, and the port."""
        for line in (*self._members.values(), *self._pending):
            line.close()
        self._listener.close()

    def _request_regroup(self) -> None:
        """Have all ranks stop and begin again with a machine that has come; a user's own stop goes before."""
        requested_ns = self._stop_requested_ns()
        if self._grown_ns is not None and requested_ns not in {None, self._grown_ns}:
            self._grown_ns = 0  # someone has asked for a stop since
        if self._grown_ns is None and requested_ns is None and self._members.keys() - self._in_attempt:
            self._tell("another machine has come: all save, and go on together")
            self._run.stop.touch()
            self._grown_ns = self._stop_requested_ns()

    def _stop_requested_ns(self) -> int | None:
        try:
            return self._run.stop.stat().st_mtime_ns
        except FileNotFoundError:  # the ranks take it away when they have stopped
            return None

    def _begin(self) -> Plan:
        nodes = [0, *sorted(self._members)]
        profile = self._profile.model_copy(update={"nodes": len(nodes), "min_nodes": None})
        token = secrets.token_hex(8)
        plan = self._local.plan(profile)
        write_atomically(self._run.profile, profile.to_yaml())
        write_atomically(self._run.rendezvous, json.dumps({"token": token, "hosts": [self._names[n] for n in nodes]}))
        for rank, node in enumerate(nodes[1:], start=1):
            self._members[node].send(token=token, nodes=len(nodes), node_rank=rank)
        self._in_attempt, self._grown_ns = set(nodes[1:]), None
        self._ended.clear()
        self._tell(f"nodes {', '.join(f'{node} ({self._names[node]})' for node in nodes)} begin together")
        return plan

    def _receive(self) -> None:
        """Take in who comes, hear what they say, and let go who is lost."""
        try:
            connection, _ = self._listener.accept()
            self._pending.append(PeerConnection(connection))
        except BlockingIOError:
            pass
        for line in list(self._pending):
            messages = line.poll()
            if messages or line.failure is not None:
                self._pending.remove(line)
                if messages:
                    self._accept(line, messages[0])
                else:
                    line.close()
        for node, line in list(self._members.items()):
            for message in line.poll():
                if message.get("ended"):
                    self._ended[node] = time.monotonic()
            if (failure := line.failure) is not None:
                self._remove(node, failure)

    def _accept(self, line: PeerConnection, hello: dict[str, Any]) -> None:
        node = hello.get("node")
        ours = self._local.must_match
        others = [f"{key} {hello.get(key)}, not {ours[key]}" for key in ours if hello.get(key) != ours[key]]
        if not isinstance(node, int) or not 0 < node < self._profile.nodes:
            line.close()
        elif others:
            line.send(refused=f"node {node} was started for another training than node 0: {'; '.join(others)}")
        elif node in self._members:
            line.send(refused=f"node {node} is here already ({self._names[node]}); give another --node-rank")
        else:
            self._members[node], self._names[node] = line, str(hello.get("host"))

    def _remove(self, node: int, why: str) -> None:
        if (line := self._members.pop(node, None)) is not None:
            line.close()
            self._tell(f"node {node} ({self._names[node]}) {why}")

    def _tell_all(self, words: str) -> None:
        self._tell(words)
        for line in self._members.values():
            line.send(tell=words)

    def _missing_nodes(self) -> str:
        missing = [str(node) for node in range(1, self._profile.nodes) if node not in self._members]
        here = ", ".join(f"node {node} ({self._names[node]})" for node in (0, *sorted(self._members)))
        return (
            f"node{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {self._profile.nodes} "
            f"{'have' if len(missing) > 1 else 'has'} not come to {self._profile.rendezvous} "
            f"(interface {self._profile.interface}); here {'are' if self._members else 'is'} {here}"
        )


def _listen(profile: Profile) -> socket.socket:
    assert profile.rendezvous is not None and profile.address is not None
    _, port = split_endpoint(profile.rendezvous)
    listener = socket.socket(socket.AF_INET6 if ":" in profile.address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((profile.address, port))
    except OSError as error:
        listener.close()
        raise LaunchError(f"--rendezvous {profile.rendezvous} cannot be listened at: {error.strerror}") from None
    listener.listen()
    listener.settimeout(0)
    return listener
