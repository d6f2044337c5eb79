"""Defines a request to train a run: as given on the command line or in Python, and as resolved on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from distrain.config import Recipe
from distrain.config.batching import Batching
from distrain.config.debug_presets import DebugOptions
from distrain.config.profile import LaunchOptions, Profile
from distrain.launchers import LAUNCHERS
from distrain.launchers.plan import Plan
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Changes


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """The request as given; None where an option is not."""

    reference: str | None = None  # a built-in recipe or a YAML file
    overrides: Sequence[str] = ()
    data: str | None = None
    run: Path | None = None
    launch: str | None = None  # a launch profile
    options: LaunchOptions
    dry_run: bool = False
    verbose: bool = False
    debug_options: DebugOptions = field(default_factory=DebugOptions)
    preflight: bool = True  # whether to check disk and memory, which are estimates
    wait: bool = False  # for devices that other runs have
    objects: Mapping[str, bytes] = field(default_factory=dict)  # given by value in Python: `distrain.runs.objects`


@dataclass(frozen=True, kw_only=True)
class ResolvedFit:
    """A request as resolved on this machine: the run, its recipe and profile, and the plan for a launcher."""

    run: RunDirectory
    recipe: Recipe
    changes: list[str]  # what the debug options change in the recipe
    profile: Profile
    batchings: list[Batching]  # one for each number of processes that the profile allows
    plan: Plan
    notes: list[str]  # properties of the data that the user may not expect
    is_finished: bool
    extension: Changes = field(default_factory=dict)  # what changes in the recipe of an existing run
    devices: Mapping[str, str] = field(default_factory=dict)  # the variables that show the leased devices
    objects: Mapping[str, bytes] = field(default_factory=dict)  # those of the request

    @property
    def spans_nodes(self) -> bool:
        """Whether this command starts the processes of one of several nodes; on SLURM one launcher starts all nodes."""
        return self.profile.nodes > 1 and self.profile.launcher != "slurm"

    def replan(self, profile: Profile) -> Plan:
        """Return the plan for the nodes that are available now, on the same devices."""
        plan = LAUNCHERS[profile.launcher](profile, self.run.path)
        return replace(plan, env={**plan.env, **self.devices})

    def on(self, devices: Mapping[str, str]) -> "ResolvedFit":
        """Return the same request with the devices that were leased for it, as environment variables."""
        return replace(self, devices=devices, plan=replace(self.plan, env={**self.plan.env, **devices}))
