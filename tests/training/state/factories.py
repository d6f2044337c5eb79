"""Trains short runs in this process, through the engine, on networks and losses that have state of their own."""

import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Status
from distrain.training import trainer
from distrain.training.monitor import RankMonitor
from tests.checkpoint.factories import SINGLE
from tests.cli_runner import comparable

# 77 samples: the last batch of an epoch is smaller, and its micro-batches do not divide evenly over two processes.
SHORT = [
    "data={source: digits, batch_size: 16, train_samples: 77, val_samples: 23}",
    "train={epochs: 2, micro_batch_size: 4}",
    "optimizer={name: sgd, lr: 0.05, momentum: 0.9}",
    "log={every_steps: 1, tensorboard: false, wandb: disabled}",
    "eval={batch_size: 5}",
    "loss.label_smoothing=null",
    "checkpoint.keep_last=9",
]


SAMPLES_SEEN = 2 * 77


def train(path: Path, *overrides: str, world: World = SINGLE) -> Status:
    """Train from the newest checkpoint of `path`, or from the start, and return the status at the end."""
    run = RunDirectory(path)
    recipe = load_recipe("digits", overrides=[*SHORT, *overrides])
    if world.is_rank_zero and not path.exists():
        run.create()
        run.recipe.write_text(recipe.to_yaml())
    world.barrier()
    profile = Profile(launcher="torchrun", device="cpu", processes=world.size, threads=1)
    with RankMonitor(run, rank=world.rank) as monitor:
        assert trainer.train(recipe, profile, run, world, monitor)
        world.barrier()
        return monitor.state.snapshot()


def train_and_resume(world: World, folder: Path, *overrides: str) -> None:
    """Train two epochs, and the second one again from the checkpoint of the first: the bits must be equal."""
    whole = train(folder / "whole", *overrides, world=world)
    if world.is_rank_zero:
        shutil.copytree(folder / "whole", folder / "resumed")
        unfinish(folder / "resumed")
    world.barrier()
    resumed = train(folder / "resumed", *overrides, world=world)
    assert resumed.weights_digest == whole.weights_digest
    assert resumed.state_digest == whole.state_digest
    if world.is_rank_zero:
        assert comparable(folder / "resumed") == comparable(folder / "whole")


def unfinish(run: Path) -> None:
    """Leave a run as if it had been killed in its second epoch."""
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    (run / "status.json").unlink()


class Base(nn.Module):
    """A network whose answers depend on how many samples it was trained on."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 16)
        self.head = nn.Linear(16, num_classes)
        self.seen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen += len(images)
        answers: torch.Tensor = self.head(torch.tanh(self.hidden(images.flatten(1))))
        return answers * (1 + self.seen / 100)


class CountingInADict(Base):
    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen, "halves": torch.tensor([self.seen / 2])}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
        assert state["halves"].tolist() == [self.seen / 2]


class CountingInATensor(Base):
    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor([float(self.seen)])

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.seen = int(state.item())


class CountingInAStream(Base):
    """As TransformerEngine has it."""

    def get_extra_state(self) -> io.BytesIO:
        return io.BytesIO(str(self.seen).encode())

    def set_extra_state(self, state: io.BytesIO) -> None:
        self.seen = int(state.read().decode())


class CountingInItsOwnWay(Base):
    """What older modules do: entries of their own in the state_dict, which no name gives away."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}count"] = self.seen

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}count" in state:
            self.seen = state.pop(f"{prefix}count")
        super()._load_from_state_dict(state, prefix, *rest)


class CountingInABuffer(CountingInADict):
    """A buffer as well, which each pass replaces by another tensor."""

    count: torch.Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.count = self.count + len(images)
        return super().forward(images) * (1 + self.count / 100)


class Deeper(nn.Module):
    """Extra state below the network itself, and weights that are shared."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.counting = CountingInADict(num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.second(torch.tanh(self.first(images.flatten(1)))))
        answers: torch.Tensor = self.counting(hidden)
        return answers


def old_weight_norm(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(64, 16)), nn.Tanh(), nn.Linear(16, num_classes))


def old_spectral_norm(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(64, 16)), nn.Tanh(), nn.Linear(16, num_classes))


def parametrized(num_classes: int) -> nn.Module:
    first = nn.utils.parametrizations.spectral_norm(nn.Linear(64, 16))
    last = nn.utils.parametrizations.weight_norm(nn.Linear(16, num_classes))
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), last)


def pruned(num_classes: int) -> nn.Module:
    first = nn.Linear(64, 16)
    prune.l1_unstructured(first, "weight", 0.5)  # type: ignore[no-untyped-call]
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(16, num_classes))


class Centred(nn.Module):
    """A loss that subtracts a running mean of the logits, a buffer, and counts its batches in a plain attribute."""

    center: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(10))
        self.batches: Counter[str] = Counter()

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(logits - self.center, targets) * (1 + self.batches["train"] / 100)
        if self.training:
            self.center.lerp_(logits.detach().mean(dim=0), 0.1)
            self.batches["train"] += 1
        return loss

    def get_extra_state(self) -> Counter[str]:
        return self.batches

    def set_extra_state(self, state: Counter[str]) -> None:
        self.batches = state


class PlainCentred:
    """The same without being a module."""

    def __init__(self) -> None:
        self.center = torch.zeros(10)

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(logits - self.center, targets)
        if torch.is_grad_enabled():
            self.center = self.center.lerp(logits.detach().mean(dim=0), 0.1)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"center": self.center}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.center = state["center"]


plain_centred = PlainCentred()


class Unstorable(CountingInADict):
    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen, "log": [object()]}


class Giving(Base):
    """Defines one half of the pair alone."""

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen}


class Forgetful(CountingInADict):
    def set_extra_state(self, state: dict[str, Any]) -> None:
        raise KeyError("count")
