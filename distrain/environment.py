"""Owns what is recorded of the machine and the code that a run is started with; never a secret."""

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from typing import Any

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


def describe_environment() -> dict[str, Any]:
    """Return versions, host, processor count and the git state of the folder; environment variables stay out."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": len(os.sched_getaffinity(0)),
        "versions": package_versions(),
        "git": _git_state(),
    }


def package_versions() -> dict[str, str | None]:
    """Return the installed version of each package that a training depends on, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _git_state() -> dict[str, Any] | None:
    sha = _git("rev-parse", "HEAD")
    if sha is None:
        return None
    diff = _git("diff", "HEAD") or ""
    return {"sha": sha.strip(), "diff": diff if len(diff) <= MAX_DIFF_BYTES else f"{len(diff)} bytes, left out"}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, errors="replace")
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
