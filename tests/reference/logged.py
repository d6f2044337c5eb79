"""A small training that keeps its initial weights and everything that the network was trained on, for a replay."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distrain.checkpoint.load import read_model
from distrain.config import Recipe, load_recipe, read_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.runs.checkpoints import committed, read
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Status
from distrain.training import trainer
from distrain.training.monitor import RankMonitor
from tests.cli_runner import metrics
from tests.processes import run_ranks

NUM_TRAIN, NUM_VAL, NUM_CLASSES = 77, 23, 5

BASE = f"""
name: reference
data: {{source: tensors, batch_size: 16}}
model: {{name: "{__name__}:network"}}
loss: {{name: cross_entropy}}
optimizer: {{name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.01}}
train: {{epochs: 3, micro_batch_size: 4}}
log: {{every_steps: 1, tensorboard: false, wandb: disabled}}
eval: {{batch_size: 5, metrics: [top1, top5, f1, precision, recall, auroc, average_precision, accuracy_per_class]}}
"""

initial: dict[str, torch.Tensor] = {}
inputs: list[torch.Tensor] = []  # of the passes in training, in their order
shares: list[torch.Tensor] = []  # of the classes, where samples are mixed: the targets of these passes


class Network(nn.Module):
    """Convolution and two layers; it notes what it is trained on."""

    def __init__(self, num_classes: int, *, has_batch_norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4) if has_batch_norm else nn.Identity()
        self.mid = nn.Linear(64, 16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            inputs.append(images.detach().clone())
        features = torch.relu(self.bn(self.conv(images)))
        return self.head(torch.tanh(self.mid(features.flatten(1))))  # type: ignore[no-any-return]


def network(num_classes: int, *, has_batch_norm: bool = False) -> Network:
    """Return the network that a recipe names, and keep the weights that it begins with."""
    made = Network(num_classes, has_batch_norm=has_batch_norm)
    initial.clear()
    initial.update({name: value.clone() for name, value in made.state_dict().items()})
    return made


def loss_of_shares(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of mixed samples; it notes the targets of training."""
    if torch.is_grad_enabled():
        shares.append(targets.detach().clone())
    return F.cross_entropy(logits, targets)


@dataclass(frozen=True)
class Trained:
    """A run of distrain, with what it was trained on."""

    recipe: Recipe
    records: list[dict[str, float]]
    status: Status
    checkpoint: dict[str, Any]  # the newest one's state
    weights: dict[str, torch.Tensor]  # of that checkpoint, or their moving averages
    initial: dict[str, torch.Tensor]
    lines: list[str]  # that the terminal shows of evaluations
    inputs: list[list[torch.Tensor]]  # of each rank
    shares: list[list[torch.Tensor]]


def write_data(file: Path) -> None:
    """Write images whose first pixel is the number of the sample, and classes of unequal frequency."""
    draws = np.random.default_rng(5)
    total = NUM_TRAIN + NUM_VAL
    images = draws.integers(0, 256, (total, 1, 4, 4), dtype=np.uint8)
    labels = draws.choice(NUM_CLASSES, total, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    images[:, 0, 1:, 1:] = np.clip(images[:, 0, 1:, 1:] // 3 + 30 * labels[:, None, None], 0, 255)
    images[:, 0, 0, 0] = np.arange(total)
    np.savez(
        file,
        train_images=images[:NUM_TRAIN],
        train_labels=labels[:NUM_TRAIN],
        val_images=images[NUM_TRAIN:],
        val_labels=labels[NUM_TRAIN:],
    )


def read_data(file: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images float32 and labels int64 to train, and the same to validate."""
    with np.load(file) as arrays:
        found = [
            torch.from_numpy(arrays[name]) for name in ("train_images", "train_labels", "val_images", "val_labels")
        ]
    return found[0] / 255, found[1].long(), found[2] / 255, found[3].long()


def train(folder: Path, overrides: list[str], processes: int) -> Trained:
    """Train on the data in `folder` with the base recipe, changed, on so many processes."""
    (folder / "base.yaml").write_text(BASE)
    run = RunDirectory(folder / "run")
    run.create()
    recipe = load_recipe(str(folder / "base.yaml"), overrides=overrides, data=str(folder / "data.npz"))
    run.recipe.write_text(recipe.to_yaml())
    run_ranks(_train, folder, processes, run.path)
    logs = [torch.load(folder / f"log-{rank}.pt") for rank in range(processes)]
    newest = committed(run.checkpoints)[-1]
    return Trained(
        recipe=recipe,
        records=metrics(run.path),
        status=run.read_status(),
        checkpoint=read(newest).state,
        weights=read_model(newest),
        initial=logs[0]["initial"],
        lines=logs[0]["lines"],
        inputs=[log["inputs"] for log in logs],
        shares=[log["shares"] for log in logs],
    )


def _train(world: World, path: Path) -> None:
    run = RunDirectory(path)
    profile = Profile(launcher="torchrun", device="cpu", processes=world.size, threads=1)
    run_to_end = trainer.run_to_end

    def begin_to_log(*arguments: Any) -> bool:
        inputs.clear()  # of passes that only try the network
        shares.clear()
        return run_to_end(*arguments)

    lines = _Lines()
    with (
        pytest.MonkeyPatch.context() as patch,
        lines.of("distrain.training.loggers.console"),
        RankMonitor(run, world.rank) as monitor,
    ):
        patch.setattr(trainer, "run_to_end", begin_to_log)
        assert trainer.train(read_recipe(run.recipe), profile, run, world, monitor)
        world.barrier()
    log = {"initial": initial, "inputs": inputs, "shares": shares, "lines": lines.told}
    torch.save(log, path.parent / f"log-{world.rank}.pt")


class _Lines(logging.Handler):
    """Keeps what a module logs."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        logger = logging.getLogger(name)
        level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        yield
        logger.removeHandler(self)
        logger.setLevel(level)
