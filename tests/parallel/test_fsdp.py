"""FSDP: weights that live in parts are the same weights in training, in evaluation and in a checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import nn

from distrain import engine
from distrain.heart import Heart
from distrain.launchers.profile import Profile
from distrain.recipe import load_recipe
from distrain.rundir import RunDirectory
from distrain.world import World
from tests.processes import run_ranks

SHORT = [
    "data={source: digits, batch_size: 32, train_samples: 384, val_samples: 32}",
    "log={tensorboard: false, wandb: disabled}",
    f"model={{name: '{__name__}:network'}}",
    "optimizer={lr: 0.3, momentum: 0.9}",
    "parallel.strategy=fsdp",
    "eval={every_epochs: null, every_steps: 3}",
]
NEVER, OFTEN = (f"checkpoint={{every_epochs: null, keep_best: false, every_steps: {n}}}" for n in ("null", 3))


class Scaled(nn.Module):
    """A network with a weight of its own beside those of its layers, as a vision transformer has class tokens."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(64))
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images) * self.scale)  # type: ignore[no-any-return]


def network(num_classes: int) -> nn.Module:
    return Scaled(num_classes)


def train(world: World, path: Path, overrides: list[str]) -> str | None:
    """Train through the engine and return the digest of the weights."""
    run = RunDirectory(path)
    if world.is_main:
        run.create()
    world.barrier()
    profile = Profile(launcher="torchrun", device="cpu", processes=world.size, threads=1)
    with Heart(run, rank=world.rank) as heart:
        assert engine.train(load_recipe("digits", overrides=[*SHORT, *overrides]), profile, run, world, heart)
        return heart.status.weights_digest


def train_with_and_without_checkpoints(world: World, folder: Path, overrides: list[str]) -> None:
    digests = [train(world, folder / name, [*overrides, often]) for name, often in (("a", NEVER), ("b", OFTEN))]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "train",
    [
        "train={epochs: 1, ema_decay: 0.9}",
        "train={epochs: 1, clip_norm: 0.05}",
        "train={epochs: 1, ema_decay: 0.9, lookahead: {every_steps: 2}}",
    ],
)
def test_checkpoints_between_evaluations_leave_the_weights_as_they_are_without(tmp_path: Path, train: str) -> None:
    run_ranks(train_with_and_without_checkpoints, tmp_path, 2, tmp_path, [train])
