"""Defines with whom a launcher executes a plan: alone, or with the launchers of the run's other machines."""

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
    """What the launcher of one of several nodes was started for."""

    profile: Profile
    run: RunDirectory
    recipe_digest: str
    plan: Callable[[Profile], Plan]  # makes what is started here of the profile of an attempt
    tell: Callable[[str], None]

    @property
    def must_match(self) -> dict[str, Any]:
        """What all nodes must be started with alike."""
        profile = self.profile
        words = {"launcher": profile.launcher, "device": profile.device, "processes": profile.processes}
        return {**words, "nodes": profile.nodes, "min_nodes": profile.min_nodes, "recipe": self.recipe_digest}


class NodeGroup(Protocol):
    """The launchers that begin and end every attempt together."""

    @property
    def is_coordinator(self) -> bool:
        """Whether this launcher watches the ranks and decides how the run goes on."""
        ...

    def join(self, was_asked: StopRequest) -> Plan | None:
        """Wait until all are ready, and return what to start here; None where the run is asked to stop first.

        `was_asked` is set once a signal has asked this very launcher to stop.
        Raises `LaunchError` where the others do not come.
        """
        ...

    def poll(self) -> str | None:
        """Return why the attempt that is under way has to end here; None as long as it goes on."""
        ...

    def leave(self) -> None:
        """Say that the attempt is over here, and wait until it is over everywhere."""
        ...

    def decide(self, end: ExitCode | None) -> ExitCode | None:
        """Agree how the run goes on: with another attempt (None), or not; the leader's `end` decides."""
        ...

    def close(self) -> None:
        """Leave the others."""
        ...


class SingleNode:
    """One machine, which needs nobody."""

    is_coordinator = True

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def join(self, was_asked: StopRequest) -> Plan:  # noqa: ARG002 - there is nothing to wait for
        """Return the plan at once."""
        return self._plan

    def poll(self) -> None:
        """See nobody."""
        return

    def leave(self) -> None:
        """Wait for nobody."""

    def decide(self, end: ExitCode | None) -> ExitCode | None:
        """Decide."""
        return end

    def close(self) -> None:
        """Leave nobody."""
