"""Defines the launch profile: where and on how many processes a recipe trains, checked against this machine."""

import os
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distrain.config.validation import describe
from distrain.config.yaml_text import read_yaml_text
from distrain.errors import LaunchError, RunError
from distrain.system.files import read_whole
from distrain.system.gpus import find_gpus
from distrain.system.network import find_interface, resolve, route_to, split_endpoint

LauncherName = Literal["inprocess", "torchrun", "accelerate", "slurm"]
Device = Literal["cpu", "cuda"]


class Profile(BaseModel):
    """The processes and devices of a run; a profile never changes the mathematics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    launcher: LauncherName
    device: Device | None = Field(description="None for a submitted run, until its job sees what SLURM has allocated")
    nodes: int = Field(1, gt=0, description="number of nodes")
    min_nodes: int | None = Field(None, gt=0, description="continue with this many nodes when others are lost")
    node_rank: int = Field(0, ge=0, description="index of this node; node 0 writes the run directory")
    rendezvous: str | None = Field(None, description="host:port of node 0, to which the other nodes connect")
    address: str | None = Field(None, description="the address of this node on the route to node 0")
    interface: str | None = Field(None, description="the network interface that has this address")
    processes: int = Field(gt=0, description="training processes on each node; on GPUs, one for each GPU")
    devices: int = Field(1, gt=0, description="GPUs of each process; more than one only with DataParallel")
    threads: int = Field(gt=0, description="intra-op threads of each process; their number changes rounding")
    restarts: int = Field(3, ge=0, description="restarts after failures in a row without a newer checkpoint")
    stall_timeout_s: float = Field(
        120.0, gt=0, description="a run of several processes without progress for this long has stalled"
    )
    trace: bool = Field(default=False, description="trace some steps of each rank with the torch profiler")
    accelerate_config: str | None = Field(None, description="the user's configuration file for accelerate")

    @property
    def resolved_device(self) -> Device:
        """The device; only the profile of a submitted run whose job has not started has none."""
        assert self.device is not None
        return self.device

    @property
    def world_size(self) -> int:
        """The number of training processes on all nodes."""
        return self.nodes * self.processes

    @property
    def world_sizes(self) -> list[int]:
        """All numbers of processes that the run may train on, as nodes are lost and rejoin."""
        return [nodes * self.processes for nodes in range(self.min_nodes or self.nodes, self.nodes + 1)]

    @property
    def may_fork(self) -> bool:
        """Whether ranks may be forks of one process: the GPU profiler does not work in forks of a process with it."""
        return not (self.trace and self.device == "cuda")

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that every launcher sets for the training processes."""
        variables = {"OMP_NUM_THREADS": str(self.threads)}
        if self.interface is not None:  # gloo and NCCL would use the interface that the hostname resolves to
            variables |= {"GLOO_SOCKET_IFNAME": self.interface, "NCCL_SOCKET_IFNAME": self.interface}
        return variables

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port of torchrun's rendezvous: one port above that of distrain's launchers."""
        assert self.rendezvous is not None
        host, port = split_endpoint(self.rendezvous)
        return host, port + 1

    def as_options(self) -> "LaunchOptions":
        """Return the options that give this profile again on the same machine."""
        nodes = f"{self.min_nodes}:{self.nodes}" if self.min_nodes is not None else str(self.nodes)
        return LaunchOptions(
            launcher=self.launcher,
            device=self.device,
            nodes=nodes,
            node_rank=self.node_rank if self.nodes > 1 else None,
            rendezvous=self.rendezvous,
            processes=self.processes * self.devices,
            restarts=self.restarts,
            stall_timeout_s=self.stall_timeout_s,
            accelerate_config=self.accelerate_config,
        )

    def to_yaml(self) -> str:
        """Return the profile as YAML."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


class LaunchOptions(BaseModel):
    """Launch options of a launch profile or the command line; None is decided by the other one, or by the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    launcher: LauncherName | None = None
    device: Device | None = None
    nodes: int | str | None = None  # a number, or MIN:MAX
    node_rank: int | None = Field(None, ge=0)
    rendezvous: str | None = None
    processes: int | None = Field(None, gt=0)
    restarts: int | None = Field(None, ge=0)
    stall_timeout_s: float | None = Field(None, gt=0)
    accelerate_config: str | None = None

    @property
    def fault_tolerance(self) -> dict[str, Any]:
        """The fields for restarts and stalls that are given."""
        return self.model_dump(include={"restarts", "stall_timeout_s"}, exclude_none=True)

    def merged_over(self, other: Self) -> Self:
        """Return `other`, overridden by what is given here."""
        return other.model_copy(update=self.model_dump(exclude_none=True))


def read_options(
    *,
    gpus: int | None = None,
    device: str | None = None,
    processes: int | None = None,
    launcher: str | None = None,
    nodes: int | str | None = None,
    node_rank: int | None = None,
    rendezvous: str | None = None,
    restarts: int | None = None,
    stall_timeout_s: float | None = None,
    accelerate_config: Path | None = None,
) -> LaunchOptions:
    """Read the options of the command line; raises `LaunchError` where they are invalid or contradict each other."""
    for option, count in (("--gpus", gpus), ("--procs", processes)):
        if count is not None and count < 1:
            raise LaunchError(f"{option} must be 1 or more, not {count}")
    if restarts is not None and restarts < 0:
        raise LaunchError(f"--restarts must be 0 or more, not {restarts}")
    if stall_timeout_s is not None and not stall_timeout_s > 0:
        raise LaunchError(f"--stall-timeout must be greater than 0 seconds, not {stall_timeout_s:g}")
    if gpus is not None and processes is not None:
        raise LaunchError("--gpus and --procs both give the number of processes; remove one")
    if gpus is not None and device == "cpu":
        raise LaunchError("--gpus does not go with --device cpu; give the number of CPU processes with --procs")
    if processes is not None and device == "cuda":
        raise LaunchError("--procs counts CPU processes; give the number of GPUs with --gpus")
    given = {
        "launcher": launcher,
        "device": "cuda" if gpus else "cpu" if processes else device,
        "nodes": nodes,
        "node_rank": node_rank,
        "rendezvous": rendezvous,
        "processes": gpus or processes,
        "restarts": restarts,
        "stall_timeout_s": stall_timeout_s,
        "accelerate_config": str(accelerate_config.absolute()) if accelerate_config is not None else None,
    }
    try:
        return LaunchOptions.model_validate(given)
    except ValidationError as error:
        key, _, reason = describe(error, LaunchOptions, given, noun="the command line").partition("=")
        raise LaunchError(f"--{key.replace('_', '-')} {reason}") from None


def resolve_profile(options: LaunchOptions, *, threads: int | None, in_one_process: bool, recipe: str) -> Profile:
    """Turn launch options into a profile; the default is one GPU, or one CPU process where there is none.

    `threads` is the recipe's number of threads, None for an equal share of the processors. `in_one_process` gives all
    GPUs to one process.
    Raises `LaunchError` where this machine has fewer GPUs than requested, or cannot reach the other nodes.
    """
    device, processes = _resolve_devices(options, recipe)
    devices = 1
    if in_one_process and device == "cuda":
        processes, devices = 1, processes
    min_nodes, nodes = _read_nodes(options.nodes)
    launcher = options.launcher or ("inprocess" if processes * nodes == 1 else "torchrun")
    if launcher == "inprocess" and processes * nodes > 1:
        raise LaunchError(f"--launcher inprocess runs one process, not {processes * nodes}; use --launcher torchrun")
    if options.accelerate_config is not None and launcher != "accelerate":
        raise LaunchError(f"--accelerate-config does not go with --launcher {launcher}; use --launcher accelerate")
    node_rank, address, interface = options.node_rank or 0, None, None
    if nodes > 1:
        if options.rendezvous is None or options.node_rank is None:
            raise LaunchError(
                f"--nodes {nodes} also needs --rendezvous HOST:PORT (an address of node 0) and --node-rank "
                f"(0 on node 0, 1 on node 1)"
            )
        if not node_rank < nodes:
            raise LaunchError(f"--node-rank {node_rank} is out of range for {nodes} nodes; give 0 to {nodes - 1}")
        address = route_to(*split_endpoint(options.rendezvous))
        interface = find_interface(address)
        _check_rendezvous(options.rendezvous, node_rank, address)
    elif options.rendezvous is not None or node_rank:
        raise LaunchError("--rendezvous and --node-rank are for several nodes; give their number with --nodes")
    return Profile(
        launcher=launcher,
        device=device,
        nodes=nodes,
        min_nodes=min_nodes if min_nodes != nodes else None,
        node_rank=node_rank,
        rendezvous=options.rendezvous,
        address=address,
        interface=interface,
        processes=processes,
        devices=devices,
        threads=threads or max(1, len(os.sched_getaffinity(0)) // processes),
        accelerate_config=options.accelerate_config,
        **options.fault_tolerance,
    )


def _resolve_devices(options: LaunchOptions, recipe: str) -> tuple[Device, int]:
    """Return the device and the number of processes on this node."""
    if options.device == "cpu":
        return "cpu", options.processes or 1
    available = find_gpus()
    if options.device is None and not available.count:
        return "cpu", options.processes or 1
    gpus = options.processes or 1
    if gpus > available.count:
        raise LaunchError(
            f"{available}, and {gpus} {'was' if gpus == 1 else 'were'} requested; "
            f"to train on the CPU: distrain fit {recipe} --device cpu --procs {gpus}"
        )
    return "cuda", gpus


def _read_nodes(nodes: int | str | None) -> tuple[int, int]:
    """Return the minimum and maximum number of nodes of `2` or `1:2`."""
    parts = str(1 if nodes is None else nodes).split(":")
    if not all(part.isdecimal() for part in parts) or len(parts) > 2:
        raise LaunchError(f"--nodes {nodes} is not a number of nodes; give for example 2, or 1:2 for one or two")
    minimum, maximum = int(parts[0]), int(parts[-1])
    if not 1 <= minimum <= maximum:
        raise LaunchError(f"--nodes {nodes} is not a range from 1 on; give for example 2, or 1:2 for one or two")
    return minimum, maximum


def _check_rendezvous(rendezvous: str, node_rank: int, address: str) -> None:
    host, _ = split_endpoint(rendezvous)
    if node_rank == 0 and resolve(host) != address:
        raise LaunchError(
            f"--rendezvous {rendezvous} must be an address of node 0, which is this node; "
            f"{host} is another node (this one has {address} on the route there)"
        )


def read_profile(path: Path) -> Profile:
    """Read the profile of a run directory."""
    profile = read_whole(path, lambda text: Profile.model_validate(read_yaml_text(text)))
    if profile is None:
        raise RunError(f"{path} is missing; `distrain fit --run {path.parent}` writes it again")
    return profile
