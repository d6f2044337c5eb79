"""Owns the profile: where and on how many processes a recipe trains, checked against what this machine has."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from distrain.errors import LaunchError


class Profile(BaseModel):
    """The processes and the devices of a run; it never changes the mathematics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    launcher: Literal["inprocess", "torchrun", "slurm"]
    device: Literal["cpu", "cuda"]
    nodes: int = Field(1, gt=0, description="machines")
    processes: int = Field(gt=0, description="training processes of each machine; on GPUs, one for each of them")
    threads: int = Field(gt=0, description="intra-op threads of each process; their number changes rounding")
    restarts: int = Field(3, ge=0, description="failures in a row, without a newer checkpoint, that are borne")
    stall_timeout_s: float = Field(
        120.0, gt=0, description="a run of several processes that stands so long has stalled"
    )

    @property
    def world_size(self) -> int:
        """The training processes of all machines."""
        return self.nodes * self.processes

    def to_yaml(self) -> str:
        """Return the profile as YAML."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def resolve_profile(
    *,
    gpus: int | None,
    device: str | None,
    processes: int | None,
    threads: int | None,
    restarts: int,
    stall_timeout_s: float,
    recipe: str,
) -> Profile:
    """Turn `--gpus`, `--device` and `--procs` into a profile; with none of them, one GPU or else one CPU process.

    `threads` is what the recipe asks for, None for an equal share of the processors.
    Raises `LaunchError` where this machine has fewer GPUs than asked for, or the options contradict each other.
    """
    if device not in {None, "cpu", "cuda"}:
        raise LaunchError(f"--device {device} is not known; take cpu or cuda")
    for option, count in (("--gpus", gpus), ("--procs", processes)):
        if count is not None and count < 1:
            raise LaunchError(f"{option} {count} starts nothing; give 1 or more")
    if restarts < 0:
        raise LaunchError(f"--restarts {restarts} is no count; give 0 or more")
    if not stall_timeout_s > 0:
        raise LaunchError(f"--stall-timeout {stall_timeout_s:g} is no time; give seconds above 0")
    if gpus is not None and processes is not None:
        raise LaunchError("--gpus and --procs both give the number of processes; leave one out")
    if gpus is not None and device == "cpu":
        raise LaunchError("--gpus does not go with --device cpu; give the number of CPU processes with --procs")
    if processes is not None and device == "cuda":
        raise LaunchError("--procs counts CPU processes; give the number of GPUs with --gpus")
    available = count_gpus() if device != "cpu" and processes is None else 0
    if gpus is None and device == "cuda":
        gpus = 1
    if gpus is not None and gpus > available:
        seen = {0: "no GPU", 1: "1 GPU"}.get(available, f"{available} GPUs")
        raise LaunchError(
            f"this machine shows {seen}, and {gpus} {'was' if gpus == 1 else 'were'} asked for; "
            f"on its CPU: distrain fit {recipe} --device cpu --procs {gpus}"
        )
    if gpus is None and available:
        gpus = 1
    count = gpus or processes or 1
    return Profile(
        launcher="inprocess" if count == 1 else "torchrun",
        device="cuda" if gpus else "cpu",
        processes=count,
        threads=threads or max(1, len(os.sched_getaffinity(0)) // count),
        restarts=restarts,
        stall_timeout_s=stall_timeout_s,
    )


def read_profile(path: Path) -> Profile:
    """Read the profile of a run directory."""
    return Profile.model_validate(yaml.safe_load(path.read_text()))


def count_gpus() -> int:
    """Return how many NVIDIA GPUs a process started here would see, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip(" -1"):
        return 0
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    installed = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return installed if visible is None else min(installed, len(visible.split(",")))
