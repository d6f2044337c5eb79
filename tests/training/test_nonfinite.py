"""A training that goes back to a checkpoint frees its network before it builds another: there may be room for one."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.runs.directory import RunDirectory
from distrain.training import build, trainer
from distrain.training.monitor import RankMonitor
from distrain.training.session import Session
from tests.processes import run_ranks

SHORT = [
    "data={source: digits, batch_size: 32, train_samples: 256, val_samples: 32}",
    "log={tensorboard: false, wandb: disabled}",
    "checkpoint={every_epochs: null, keep_best: false, every_steps: 2}",
    f"loss={{name: '{__name__}:loss'}}",
]


calls: list[bool] = []  # of the loss in training


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy, which is once no number."""
    if logits.requires_grad:
        calls.append(True)
    found = nn.functional.cross_entropy(logits, targets)
    return found * float("nan") if len(calls) == 5 else found


def go_back(world: World, path: Path, overrides: list[str]) -> None:
    calls.clear()
    before: list[weakref.ref[Any]] = []
    alive: list[list[bool]] = []
    groups: list[int] = []

    def building(*args: Any, **kwargs: Any) -> Session:
        alive.append([ref() is not None for ref in before])
        session = build.build_session(*args, **kwargs)
        before.extend(weakref.ref(part) for part in (session, session.model, session.optimizer, session.strategy))
        groups.append(len(dist.distributed_c10d._world.pg_map) if world.size > 1 else 0)
        return session

    run = RunDirectory(path)
    if world.is_rank_zero:
        run.create()
    world.barrier()
    profile = Profile(launcher="torchrun", device="cpu", processes=world.size, threads=1)
    with pytest.MonkeyPatch.context() as patch, RankMonitor(run, rank=world.rank) as monitor:
        patch.setattr(trainer, "build_session", building)
        assert trainer.train(load_recipe("digits", overrides=[*SHORT, *overrides]), profile, run, world, monitor)
        world.barrier()
    assert alive == [[], [False] * 4]
    assert groups[0] == groups[1]


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (1, ["train={epochs: 1, ema_decay: 0.9}", "model.freeze=[head]"]),
        (2, ["train={epochs: 1, ema_decay: 0.9}"]),
        (2, ["train={epochs: 1}", "parallel.strategy=ddp"]),
        (2, ["train={epochs: 1, ema_decay: 0.9}", "parallel.strategy=fsdp"]),
        (2, ["train={epochs: 1, exact: true, micro_batch_size: 16}"]),
    ],
)
def test_nothing_of_the_old_training_is_there_when_the_new_one_is_built(
    tmp_path: Path, processes: int, overrides: list[str]
) -> None:
    run_ranks(go_back, tmp_path, processes, tmp_path / "run", overrides)
