"""Launchers: pure functions from (profile, run directory) to a printable plan, and one function that executes it."""

from collections.abc import Callable
from pathlib import Path

from distrain.config.profile import Profile
from distrain.launchers import accelerate, inprocess, torchrun
from distrain.launchers.plan import Plan
from distrain.launchers.slurm import srun

LAUNCHERS: dict[str, Callable[[Profile, Path], Plan]] = {
    "inprocess": inprocess.plan,
    "torchrun": torchrun.plan,
    "accelerate": accelerate.plan,
    "slurm": srun.plan,
}
