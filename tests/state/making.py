"""Trains short runs in this process, through the engine, on networks and losses that have state of their own."""

from pathlib import Path

from distrain import engine
from distrain.heart import Heart
from distrain.launchers.profile import Profile
from distrain.recipe import load_recipe
from distrain.rundir import RunDirectory, Status
from distrain.world import World
from tests.checkpoint.making import ALONE

# 77 samples: the last batch of an epoch is smaller, and its micro-batches do not divide evenly over two processes.
SHORT = [
    "data={source: digits, batch_size: 16, train_samples: 77, val_samples: 23}",
    "train={epochs: 2, micro_batch_size: 4}",
    "optimizer={name: sgd, lr: 0.05, momentum: 0.9}",
    "log={every_steps: 1, tensorboard: false, wandb: disabled}",
    "eval={batch_size: 5}",
]


def train(path: Path, *overrides: str, world: World = ALONE) -> Status:
    """Train from the newest checkpoint of `path`, or from the start, and return the status at the end."""
    run = RunDirectory(path)
    if world.is_main and not run.exists:
        run.create()
    world.barrier()
    profile = Profile(launcher="torchrun", device="cpu", processes=world.size, threads=1)
    with Heart(run, rank=world.rank) as heart:
        assert engine.train(load_recipe("digits", overrides=[*SHORT, *overrides]), profile, run, world, heart)
        world.barrier()
        return heart.status
