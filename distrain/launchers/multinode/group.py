"""Defines the node group that executes a plan: a single launcher, or the launchers of all nodes of the run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from distrain.config.profile import Profile
from distrain.errors import ExitCode
from distrain.launchers.plan import Plan
from distrain.runs.directory import RunDirectory
from distrain.system.signals import StopRequest


@dataclass(frozen=True)
class LocalNode:
    """The request that the launcher of one of several nodes was started with."""

    profile: Profile
    run: RunDirectory
    recipe_digest: str
    plan: Callable[[Profile], Plan]  # returns the plan of this node for the profile of an attempt
    notify: Callable[[str], None]

    @property
    def must_match(self) -> dict[str, Any]:
        """The settings that must be equal on all nodes."""
        profile = self.profile
        settings = {"launcher": profile.launcher, "device": profile.device, "processes": profile.processes}
        return {**settings, "nodes": profile.nodes, "min_nodes": profile.min_nodes, "recipe": self.recipe_digest}


class NodeGroup(Protocol):
    """The launchers that begin and end every attempt together."""

    @property
    def is_coordinator(self) -> bool:
        """Whether this launcher watches the ranks and decides how the run continues."""
        ...

    def join(self, stop: StopRequest) -> Plan | None:
        """Wait until all nodes are ready, and return the plan of this node; None if a stop is requested first.

        `stop` is set by a signal to this launcher.
        Raises `LaunchError` where the other nodes do not connect in time.
        """
        ...

    def poll(self) -> str | None:
        """Return why the current attempt must end on this node; None while it continues."""
        ...

    def leave(self) -> None:
        """Report that the attempt has ended on this node, and wait until it has ended on all nodes."""
        ...

    def decide(self, end: ExitCode | None) -> ExitCode | None:
        """Return the coordinator's decision: None to start another attempt, otherwise the exit code of the run."""
        ...

    def close(self) -> None:
        """Disconnect from the other nodes."""
        ...


class SingleNode:
    """A group of one node."""

    is_coordinator = True

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def join(self, stop: StopRequest) -> Plan:  # noqa: ARG002 - there is no wait to interrupt
        """Return the plan at once."""
        return self._plan

    def poll(self) -> None:
        """Return None: there are no other nodes."""
        return

    def leave(self) -> None:
        """Return at once."""

    def decide(self, end: ExitCode | None) -> ExitCode | None:
        """Return `end` unchanged."""
        return end

    def close(self) -> None:
        """Do nothing."""
