"""Describes the machine and the code with which a run is started, without secrets."""

import os
import platform
import socket
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from typing import Any

from distrain.system.nvml import Nvml, read_nvml

PACKAGES = (
    "distrain",
    "torch",
    "torchvision",
    "accelerate",
    "wandb",
    "tensorboard",
    "numpy",
    "pillow",
    "simplejpeg",
    "pydantic",
    "typer",
)
MAX_DIFF_BYTES = 1_000_000


# CUDA packages that torch's wheels use; their names end in the major version of CUDA.
CUDA_PACKAGES = ("nvidia-nccl-cu", "nvidia-cudnn-cu")
CUDA_MAJORS = range(11, 20)


def describe_environment() -> dict[str, Any]:
    """Return versions, host, processors, GPUs and the git state of the folder, but no environment variables."""
    nvml = read_nvml()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": describe_gpus(nvml),
        "driver": {"version": nvml.driver, "cuda": nvml.cuda},
        "versions": package_versions() | cuda_versions(),
        "git": _git_state(),
    }


def package_versions() -> dict[str, str | None]:
    """Return the installed version of each package that training depends on, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def cuda_versions() -> dict[str, str | None]:
    """Return the installed versions of NCCL and cuDNN, by the names of their packages."""
    found: dict[str, str | None] = {}
    for prefix in CUDA_PACKAGES:
        for major in CUDA_MAJORS:
            with suppress(metadata.PackageNotFoundError):
                found[f"{prefix}{major}"] = metadata.version(f"{prefix}{major}")
    return found


def describe_gpus(nvml: Nvml) -> list[dict[str, Any]]:
    """Return what NVML reports of each GPU of this machine."""
    return [
        {
            "uuid": gpu.uuid,
            "name": gpu.name,
            "memory_gib": round(gpu.memory_bytes / 2**30, 1),
            "capability": gpu.capability,
            "mig": [instance.uuid for instance in gpu.instances] if gpu.is_mig else None,
        }
        for gpu in nvml.gpus
    ]


def _git_state() -> dict[str, Any] | None:
    sha = _git("rev-parse", "HEAD")
    if sha is None:
        return None
    diff = _git("diff", "HEAD") or ""
    return {"sha": sha.strip(), "diff": diff if len(diff) <= MAX_DIFF_BYTES else f"omitted, bytes: {len(diff)}"}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, errors="replace")
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
