"""Defines the job of a run in the queue of its machine: `job.json`, which the scheduler and the command line write."""

import json
from typing import Literal, TypeAlias

from pydantic import BaseModel

from distrain.messages import counted

DeviceKind: TypeAlias = Literal["gpu", "cpu"]

# Variables that a job keeps as they were when it was submitted; those of CUDA_VISIBLE_DEVICES and the like come from
# the leases, secrets from the service.
_FROZEN = {"PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHASHSEED", "VIRTUAL_ENV", "CONDA_PREFIX", "TMPDIR", "LANG"}
_FROZEN_PREFIXES = ("CUDA_", "CUBLAS_", "NCCL_", "GLOO_", "TORCH", "OMP_", "MKL_", "HF_", "WANDB_", "XDG_", "LC_")
_NEVER = {"CUDA_VISIBLE_DEVICES"}
_SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


class LocalJob(BaseModel):
    """What a queued run needs, and what the scheduler has done with it. Times are in seconds since the epoch."""

    queue: Literal["local"] = "local"
    kind: DeviceKind
    devices: int  # how many of them
    priority: int = 0  # a higher one is served first
    submitted_at: float
    submitted_by: str  # shown; whose job it is, the owner of the file says
    after: list[str] = []  # names of runs that must have finished before
    time_limit_s: float | None = None  # of one stretch on its devices; it is saved and queued again then
    requeue: bool = True  # whether it may be stopped for another job, and is resumed after a stop or a death
    python: str
    cwd: str
    env: dict[str, str] = {}  # the variables that are frozen at submission

    queued_at: float = 0.0  # its place among those of the same priority
    is_first: bool = False  # before all others of its priority
    not_before: float = 0.0
    starts: int = 0  # a launcher of the queue trains only if it has this number: it is the newest one
    deaths: int = 0  # in a row without a newer checkpoint
    reached_step: int = 0  # the newest checkpoint when it last died or was stopped
    preempted_at: float | None = None
    preemptions: int = 0
    assigned: list[str] = []  # the devices that it has got
    started_at: float | None = None
    is_backfilled: bool = False
    stop_reason: str = ""  # why the scheduler stops it: for another job, or for its time limit
    fault: str = ""  # why it could not be started


def counted_devices(number: int, kind: DeviceKind) -> str:
    """Return a number of devices as text: `2 GPUs`, `1 CPU slot`."""
    return counted(number, "GPU" if kind == "gpu" else "CPU slot")


def is_local(text: str) -> bool:
    """Whether the text of `job.json` is that of a job of this machine's queue, not of SLURM."""
    return "queue" in json.loads(text)


def freeze_environment(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that a job keeps: those that change what is computed or found, and no secrets."""
    return {name: value for name, value in environment.items() if is_frozen(name)}


def is_frozen(name: str) -> bool:
    """Whether a job keeps this variable as it was when it was submitted."""
    if name in _NEVER or any(word in name.upper() for word in _SECRET_WORDS):
        return False
    return name in _FROZEN or name.startswith(_FROZEN_PREFIXES)
