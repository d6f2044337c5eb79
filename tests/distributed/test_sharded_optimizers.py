"""Optimizers update sharded weights as they update full ones, or are refused: tried on two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distrain.config import Optimizer, Train
from distrain.distributed.fsdp import Fsdp
from distrain.distributed.world import World
from distrain.errors import RecipeError
from distrain.tensors.dtensor import full_tensor
from distrain.training.optim.clipping import build_clipping
from distrain.training.optim.optimizer import build_optimizer
from tests.processes import run_ranks

YES = {
    "torch.optim:NAdam": {},
    "torch.optim:RAdam": {},
    "torch.optim:Adamax": {},
    "torch.optim:Adagrad": {},
    "torch.optim:Adadelta": {},
    "torch.optim:ASGD": {},
    "torch.optim:Rprop": {},
    "torch.optim:SGD": {"momentum": 0.9, "dampening": 0.1},
    "timm.lion": {},
    "timm.lamb": {},
    "timm.adan": {},
    "timm.adabelief": {},
    "schedule_free_sgd": {},
    "schedule_free_adamw": {},
    "muon": {},
}
NO = {"torch.optim:Adafactor": {}, "timm.adafactor": {}}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)
    )


def config_of(name: str, arguments: dict[str, Any]) -> Optimizer:
    more = {"adamw_lr": 0.001} if name == "muon" else {}
    return Optimizer.model_validate({"name": name, "lr": 0.01, "arguments": arguments, **more})


def try_all(world: World) -> None:
    net = network()
    Fsdp(net, world, torch.zeros(2, 3, 4, 4))
    supported, refused = set(), {}
    for name, arguments in {**YES, **NO}.items():
        try:
            build_optimizer(config_of(name, arguments), net, heads=["5"])
            supported.add(name)
        except RecipeError as error:
            refused[name] = str(error)
    print(sorted(refused.items()))
    assert supported == YES.keys(), refused
    assert all("does not support the sharded weights of parallel.strategy=fsdp" in text for text in refused.values())


def test_optimizers_are_tried_on_sharded_weights_before_the_training(tmp_path: Path) -> None:
    run_ranks(try_all, tmp_path, 2)


def learn_in_parts(world: World, name: str) -> None:
    """Train the same steps sharded and full: the same weights, whatever the optimizer does with their shards."""
    parts, full = network(), network()
    strategy = Fsdp(parts, world, torch.zeros(2, 3, 4, 4))
    optimizers = [build_optimizer(config_of(name, YES[name]), net, heads=["5"]) for net in (parts, full)]
    for step in range(3):
        images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        for net, optimizer in zip((strategy.module, full), optimizers, strict=True):
            nn.functional.cross_entropy(net.train()(images), torch.arange(8) % 5).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    for (key, mine), theirs in zip(parts.named_parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(full_tensor(mine.detach()), theirs.detach(), rtol=2e-2, atol=2e-4, msg=key)


@pytest.mark.parametrize("name", ["muon", "timm.lamb", "schedule_free_adamw"])
def test_sharded_weights_are_updated_as_full_ones(tmp_path: Path, name: str) -> None:
    run_ranks(learn_in_parts, tmp_path, 2, name)


def clip_in_parts(world: World, options: dict[str, float]) -> None:
    parts, full = network(), network()
    Fsdp(parts, world, torch.zeros(2, 3, 4, 4))
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for net in (parts, full):
        (nn.functional.cross_entropy(net(images), torch.arange(8) % 5) * 10).backward()  # type: ignore[no-untyped-call]
        clip = build_clipping(Train(epochs=1, **options), net, heads=["5"])  # type: ignore[arg-type]
        assert clip is not None
        clip(list(net.parameters()))
    for (key, mine), theirs in zip(parts.named_parameters(), full.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(full_tensor(mine.grad), theirs.grad, msg=key)


@pytest.mark.parametrize("options", [{"agc": 0.01}, {"clip_value": 0.02}])
def test_sharded_gradients_are_clipped_as_full_ones(tmp_path: Path, options: dict[str, float]) -> None:
    run_ranks(clip_in_parts, tmp_path, 2, options)
