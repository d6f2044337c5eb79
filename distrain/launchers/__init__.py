"""Launchers: pure functions from (profile, run directory) to a printable plan, and one function that executes it."""

from collections.abc import Callable
from pathlib import Path

from distrain.launchers import accelerate, inprocess, slurm, torchrun
from distrain.launchers.plan import Plan
from distrain.launchers.profile import Profile

LAUNCHERS: dict[str, Callable[[Profile, Path], Plan]] = {
    "inprocess": inprocess.plan,
    "torchrun": torchrun.plan,
    "accelerate": accelerate.plan,
    "slurm": slurm.plan,
}
