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
from distrain.system.files import write_atomically
from distrain.system.network import split_endpoint
from distrain.system.signals import StopRequest

POLL_S = 0.1
REPORT_INTERVAL_S = 10.0  # between two messages on missing nodes
JOIN_TIMEOUT_S = 300.0  # how long the nodes wait for each other
LAST_CALL_S = 10.0  # how long an elastic run waits for more nodes than it needs
GRACE_S = 10.0  # an attempt that has ended on another node ends here by itself in this time, or is killed
LEAVE_TIMEOUT_S = 30.0  # how long another node may take to end its processes


class Coordinator:
    """Node 0: accepts the other nodes, begins each attempt, and decides after it how the run continues."""

    is_coordinator = True

    def __init__(self, local: LocalNode) -> None:
        """Listen at the rendezvous."""
        self._local = local
        self._profile, self._run, self._notify = local.profile, local.run, local.notify
        self._members: dict[int, PeerConnection] = {}
        self._names = {0: socket.gethostname()}
        self._pending: list[PeerConnection] = []  # they have not sent their node rank yet
        self._in_attempt: set[int] = set()
        self._ended: dict[int, float] = {}
        self._regroup_ns: int | None = None  # when this attempt was stopped for more nodes; 0 if a user stops it too
        self._listener = _listen(local.profile)

    def join(self, stop: StopRequest) -> Plan | None:
        """Wait for the other nodes, begin the attempt, and return the plan of this node."""
        begun = arrival = reported = time.monotonic()
        min_nodes = self._profile.min_nodes or self._profile.nodes
        while (num_nodes := len(self._members) + 1) < self._profile.nodes:
            self._receive()
            now = time.monotonic()
            if stop.is_set() or self._run.stop.exists():
                return None
            if len(self._members) + 1 != num_nodes:
                arrival = now
            elif num_nodes >= min_nodes and now - arrival >= LAST_CALL_S:
                break
            if now - reported >= REPORT_INTERVAL_S:
                reported = now
                self._notify_all(self._missing_nodes())
            if now - begun >= JOIN_TIMEOUT_S:
                raise LaunchError(f"no start after {now - begun:.0f} s: {self._missing_nodes()}")
            time.sleep(POLL_S)
        return self._begin()

    def poll(self) -> str | None:
        """Return which node is lost or has ended; if a node comes back, request all to stop and begin again."""
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
        """Report to the others that the attempt has ended here, and wait for them."""
        for node in self._in_attempt & self._members.keys():
            self._members[node].send(ended=True)
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        while self._in_attempt & self._members.keys() - self._ended.keys() and time.monotonic() < deadline:
            self._receive()
            time.sleep(POLL_S)
        for node in self._in_attempt - self._ended.keys():
            self._remove(node, "did not end its processes in time")

    def decide(self, end: ExitCode | None) -> ExitCode | None:
        """Decide for all nodes; a stop only to let more nodes join leads to another attempt."""
        if self._regroup_ns and end == ExitCode.STOPPED:
            end = None
        for connection in self._members.values():
            connection.send(verdict=end, is_over=end is not None)
        self._in_attempt.clear()
        return end

    def close(self) -> None:
        """Disconnect from the other nodes, and close the port."""
        for connection in (*self._members.values(), *self._pending):
            connection.close()
        self._listener.close()

    def _request_regroup(self) -> None:
        """Request all ranks to stop, to begin again with a new node; a stop by the user takes precedence."""
        requested_ns = self._stop_requested_ns()
        if self._regroup_ns is not None and requested_ns not in {None, self._regroup_ns}:
            self._regroup_ns = 0  # the user has requested a stop since
        if self._regroup_ns is None and requested_ns is None and self._members.keys() - self._in_attempt:
            self._notify("another node has joined: all ranks save, and continue together")
            self._run.stop.touch()
            self._regroup_ns = self._stop_requested_ns()

    def _stop_requested_ns(self) -> int | None:
        try:
            return self._run.stop.stat().st_mtime_ns
        except FileNotFoundError:  # the ranks delete it when they have stopped
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
        self._in_attempt, self._regroup_ns = set(nodes[1:]), None
        self._ended.clear()
        self._notify(f"starting on nodes {', '.join(f'{node} ({self._names[node]})' for node in nodes)}")
        return plan

    def _receive(self) -> None:
        """Accept new connections, read messages, and remove lost nodes."""
        try:
            connection, _ = self._listener.accept()
            self._pending.append(PeerConnection(connection))
        except BlockingIOError:
            pass
        for peer in list(self._pending):
            messages = peer.poll()
            if messages or peer.failure is not None:
                self._pending.remove(peer)
                if messages:
                    self._accept(peer, messages[0])
                else:
                    peer.close()
        for node, peer in list(self._members.items()):
            for message in peer.poll():
                if message.get("ended"):
                    self._ended[node] = time.monotonic()
            if (failure := peer.failure) is not None:
                self._remove(node, failure)

    def _accept(self, peer: PeerConnection, hello: dict[str, Any]) -> None:
        node = hello.get("node")
        required = self._local.must_match
        faults = [f"{key} {hello.get(key)}, not {required[key]}" for key in required if hello.get(key) != required[key]]
        if not isinstance(node, int) or not 0 < node < self._profile.nodes:
            peer.close()
        elif faults:
            peer.send(refused=f"node {node} was started for another training than node 0: {'; '.join(faults)}")
        elif node in self._members:
            peer.send(refused=f"node {node} has already joined ({self._names[node]}); give another --node-rank")
        else:
            self._members[node], self._names[node] = peer, str(hello.get("host"))

    def _remove(self, node: int, reason: str) -> None:
        if (peer := self._members.pop(node, None)) is not None:
            peer.close()
            self._notify(f"node {node} ({self._names[node]}) {reason}")

    def _notify_all(self, text: str) -> None:
        self._notify(text)
        for peer in self._members.values():
            peer.send(notice=text)

    def _missing_nodes(self) -> str:
        missing = [str(node) for node in range(1, self._profile.nodes) if node not in self._members]
        joined = ", ".join(f"node {node} ({self._names[node]})" for node in (0, *sorted(self._members)))
        return (
            f"node{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {self._profile.nodes} "
            f"{'have' if len(missing) > 1 else 'has'} not connected to {self._profile.rendezvous} "
            f"(interface {self._profile.interface}); joined so far: {joined}"
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
        raise LaunchError(f"cannot listen at --rendezvous {profile.rendezvous}: {error.strerror}") from None
    listener.listen()
    listener.settimeout(0)
    return listener
