"""Runs the rendezvous of several nodes on the side of the members, which follow the coordinator."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from distrain.errors import ExitCode, LaunchError
from distrain.launchers.multinode.connection import PeerConnection
from distrain.launchers.multinode.coordinator import GRACE_S, JOIN_TIMEOUT_S, LEAVE_TIMEOUT_S, POLL_S, REPORT_INTERVAL_S
from distrain.launchers.multinode.group import LocalNode
from distrain.launchers.plan import Plan
from distrain.runs.format import find_file
from distrain.system.network import split_endpoint
from distrain.system.signals import StopRequest

_CONNECT_TIMEOUT_S = 3.0
_SHARED_FOLDER_S = 30.0  # a network file system may show a new file late


class Member:
    """Node 1 or a later one: connects to node 0, and begins and ends attempts as node 0 says."""

    is_coordinator = False

    def __init__(self, local: LocalNode) -> None:
        self._local = local
        self._profile, self._run, self._notify = local.profile, local.run, local.notify
        self._connection: PeerConnection | None = None
        self._unread: list[dict[str, Any]] = []
        self._coordinator_ended: float | None = None

    def join(self, stop: StopRequest) -> Plan | None:
        """Connect to node 0 and wait until it begins an attempt; returns the plan of this node."""
        self._coordinator_ended = None
        begun = reported = time.monotonic()
        reason, was_stopping = "no answer yet", self._run.stop.exists()
        while True:
            if self._connection is None and (stop.is_set() or (not was_stopping and self._run.stop.exists())):
                return None  # if connected, node 0 would send this decision
            if self._connection is None:
                reason = self._connect()
            for message in self._receive():
                if "refused" in message:
                    raise LaunchError(message["refused"])
                if "notice" in message:
                    self._notify(message["notice"])
                if "token" in message:
                    return self._begin(message)
                if message.get("verdict") == ExitCode.STOPPED:
                    return None
                if message.get("is_over"):
                    raise LaunchError("node 0 ended the run before it began on this node")
            now = time.monotonic()
            if self._connection is None and now - reported >= REPORT_INTERVAL_S:
                reported = now
                self._notify(self._coordinator_is_missing(reason))
            if now - begun >= JOIN_TIMEOUT_S:
                raise LaunchError(f"no start after {now - begun:.0f} s: {self._coordinator_is_missing(reason)}")
            time.sleep(POLL_S)

    def poll(self) -> str | None:
        """Return a message if node 0 is lost, or has ended the attempt while processes still run here."""
        for message in self._receive():
            if message.get("ended"):
                self._coordinator_ended = time.monotonic()
        if self._connection is None:
            return "node 0 is lost"
        if self._coordinator_ended is not None and time.monotonic() - self._coordinator_ended > GRACE_S:
            return "the processes of node 0 have ended"
        return None

    def leave(self) -> None:
        """Report to node 0 that the attempt has ended here."""
        if self._connection is not None:
            self._connection.send(ended=True)

    def decide(self, end: ExitCode | None) -> ExitCode | None:
        """Wait for the decision of node 0; if it is lost, continue (and reconnect) unless finished or stopped."""
        deadline = time.monotonic() + 2 * LEAVE_TIMEOUT_S
        while self._connection is not None and time.monotonic() < deadline:
            for message in self._receive():
                if "verdict" in message:
                    return ExitCode(message["verdict"]) if message["is_over"] else None
            time.sleep(POLL_S)
        return end if end in {ExitCode.FINISHED, ExitCode.STOPPED} else None

    def close(self) -> None:
        """Disconnect from node 0."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> str:
        """Try to connect to node 0; returns why the attempt has not begun yet."""
        assert self._profile.rendezvous is not None
        try:
            connection = socket.create_connection(split_endpoint(self._profile.rendezvous), timeout=_CONNECT_TIMEOUT_S)
        except OSError as error:
            return error.strerror or str(error)
        self._connection = PeerConnection(connection)
        self._connection.send(node=self._profile.node_rank, host=socket.gethostname(), **self._local.must_match)
        return "it does not answer"

    def _receive(self) -> Iterator[dict[str, Any]]:
        """Yield the messages of node 0, unread ones at the next call; closes a failed connection."""
        if self._connection is not None:
            self._unread += self._connection.poll()
        while self._unread:
            yield self._unread.pop(0)
        if self._connection is not None and (failure := self._connection.failure) is not None:
            self._notify(f"node 0 {failure}")
            self.close()

    def _begin(self, message: dict[str, Any]) -> Plan:
        deadline = time.monotonic() + _SHARED_FOLDER_S
        while self._token() != message["token"]:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"run directory {self._run.path} is not the one of node 0: "
                    "all nodes need the same folder, on a shared file system"
                )
            time.sleep(POLL_S)
        update = {"nodes": message["nodes"], "node_rank": message["node_rank"], "min_nodes": None}
        self._notify(f"starting as node {message['node_rank']} of {message['nodes']}")
        return self._local.plan(self._profile.model_copy(update=update))

    def _token(self) -> str | None:
        try:
            return str(json.loads(find_file(self._run.rendezvous).read_text(encoding="utf-8"))["token"])
        except (OSError, ValueError):
            return None

    def _coordinator_is_missing(self, reason: str) -> str:
        return (
            f"node 0 is not reachable at {self._profile.rendezvous} from {self._profile.address} "
            f"(interface {self._profile.interface}): {reason}; this is node {self._profile.node_rank} "
            f"({socket.gethostname()})"
        )
