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

_CONNECT_S = 3.0
_SHARED_FOLDER_S = 30.0  # a network file system may show a new file late


class Member:
    """Machine 1 or a later one: comes to machine 0, begins at its word, and ends as it says."""

    is_coordinator = False

    def __init__(self, local: LocalNode) -> None:
        self._local = local
        self._profile, self._run, self._tell = local.profile, local.run, local.tell
        self._connection: PeerConnection | None = None
        self._unread: list[dict[str, Any]] = []
        self._host_ended: float | None = None

    def join(self, was_asked: StopRequest) -> Plan | None:
        """Come to machine 0 and wait for its word; returns what to start here."""
        self._host_ended = None
        begun = told = time.monotonic()
        reason, was_stopping = "no answer yet", self._run.stop.exists()
        while True:
            if self._connection is None and (was_asked.is_set() or (not was_stopping and self._run.stop.exists())):
                return None  # with machine 0 here, it would say so
            if self._connection is None:
                reason = self._connect()
            for message in self._receive():
                if "refused" in message:
                    raise LaunchError(message["refused"])
                if "tell" in message:
                    self._tell(message["tell"])
                if "token" in message:
                    return self._begin(message)
                if message.get("verdict") == ExitCode.STOPPED:
                    return None
                if message.get("is_over"):
                    raise LaunchError("node 0 has ended the run before it began here")
            now = time.monotonic()
            if self._connection is None and now - told >= REPORT_INTERVAL_S:
                told = now
                self._tell(self._coordinator_is_missing(reason))
            if now - begun >= JOIN_TIMEOUT_S:
                raise LaunchError(f"given up after {now - begun:.0f} s: {self._coordinator_is_missing(reason)}")
            time.sleep(POLL_S)

    def poll(self) -> str | None:
        """Return whether machine 0 is lost, or has ended the attempt without its end being seen here."""
        for message in self._receive():
            if message.get("ended"):
                self._host_ended = time.monotonic()
        if self._connection is None:
            return "node 0 is lost"
        if self._host_ended is not None and time.monotonic() - self._host_ended > GRACE_S:
            return "the processes of node 0 have ended"
        return None

    def leave(self) -> None:
        """Tell machine 0 that it is over here."""
        if self._connection is not None:
            self._connection.send(ended=True)

    def decide(self, end: ExitCode | None) -> ExitCode | None:
        """Hear what machine 0 decides; without it, come back to it, unless the run has finished or was stopped."""
        deadline = time.monotonic() + 2 * LEAVE_TIMEOUT_S
        while self._connection is not None and time.monotonic() < deadline:
            for message in self._receive():
                if "verdict" in message:
                    return ExitCode(message["verdict"]) if message["is_over"] else None
            time.sleep(POLL_S)
        return end if end in {ExitCode.FINISHED, ExitCode.STOPPED} else None

    def close(self) -> None:
        """Leave machine 0."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> str:
        """Try to reach machine 0; returns why it cannot be."""
        assert self._profile.rendezvous is not None
        try:
            connection = socket.create_connection(split_endpoint(self._profile.rendezvous), timeout=_CONNECT_S)
        except OSError as error:
            return error.strerror or str(error)
        self._connection = PeerConnection(connection)
        self._connection.send(node=self._profile.node_rank, host=socket.gethostname(), **self._local.must_match)
        return "it does not answer"

    def _receive(self) -> Iterator[dict[str, Any]]:
        """Yield what machine 0 has said, and let go of it where it is lost; what is not taken is yielded next time."""
        if self._connection is not None:
            self._unread += self._connection.poll()
        while self._unread:
            yield self._unread.pop(0)
        if self._connection is not None and (failure := self._connection.failure) is not None:
            self._tell(f"node 0 {failure}")
            self.close()

    def _begin(self, word: dict[str, Any]) -> Plan:
        deadline = time.monotonic() + _SHARED_FOLDER_S
        while self._token() != word["token"]:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"run directory {self._run.path} is not the one that node 0 writes: "
                    "all nodes need the same folder, on a file system that they share"
                )
            time.sleep(POLL_S)
        update = {"nodes": word["nodes"], "node_rank": word["node_rank"], "min_nodes": None}
        self._tell(f"begins as node {word['node_rank']} of {word['nodes']}")
        return self._local.plan(self._profile.model_copy(update=update))

    def _token(self) -> str | None:
        try:
            return str(json.loads(find_file(self._run.rendezvous).read_text(encoding="utf-8"))["token"])
        except (OSError, ValueError):
            return None

    def _coordinator_is_missing(self, reason: str) -> str:
        return (
            f"node 0 cannot be reached at {self._profile.rendezvous} from {self._profile.address} "
            f"(interface {self._profile.interface}): {reason}; here is node {self._profile.node_rank} "
            f"({socket.gethostname()})"
        )
