"""A small model and optimizer whose checkpoints the tests write, damage and read."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from distrain import config as recipe
from distrain.checkpoint.tensors import gather_tensors
from distrain.checkpoint.writer import Checkpointer
from distrain.distributed.world import World
from distrain.training.optim.optimizer import build_optimizer

SINGLE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def make_training(rule: str = "sgd") -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    options = {"momentum": 0.9} if rule in {"sgd", "rmsprop"} else {}
    return model, build_optimizer(recipe.Optimizer.model_validate({"name": rule, "lr": 0.01, **options}), model)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 12, generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(model(images), torch.arange(8) % 3).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def checkpointer(folder: Path, world: World = SINGLE, **config: Any) -> Checkpointer:
    return Checkpointer(folder, config=recipe.Checkpoint.model_validate({"keep_last": 9, **config}), world=world)


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, **config: Any) -> None:
    with checkpointer(folder, **config) as writer:
        writer.save(step, tensors=gather_tensors(model, optimizer), state={"n": step})


def save_on_ranks(world: World, folder: Path, steps: int) -> None:
    """Save at each step on all ranks, which have the same weights, as after DDP's reduction."""
    torch.manual_seed(0)
    model, optimizer = make_training("adamw")
    with checkpointer(folder, world) as writer:
        for step in range(1, steps + 1):
            take_step(model, optimizer, step)
            writer.save(step, tensors=gather_tensors(model, optimizer), state={"n": step})


DAMAGES = ("flipped", "truncated", "emptied", "missing")


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        file.write_bytes(b"")
    else:
        file.unlink()


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
