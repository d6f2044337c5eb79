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

YES: dict[str, dict[str, Any]] = {
    "torch.optim:NAdam": {},
    "torch.optim:RAdam": {},
    "torch.optim:Adamax": {},
    "torch.optim:Adagrad": {},
    "torch.optim:Adadelta": {},
    "torch.optim:ASGD": {},
    "torch.optim:SGD": {"momentum": 0.9, "dampening": 0.1},
    "timm.lion": {},
    "timm.lamb": {},
    "timm.adan": {},
    "timm.adabelief": {},
    "schedule_free_sgd": {},
    "schedule_free_adamw": {},
    "muon": {},
}
NO: dict[str, dict[str, Any]] = {"torch.optim:Rprop": {}, "torch.optim:Adafactor": {}, "timm.adafactor": {}}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)
    )


def config_of(name: str, arguments: dict[str, Any]) -> Optimizer:
    more = {"adamw_lr": 0.001} if name == "muon" else {}
    return Optimizer.model_validate({"name": name, "lr": 0.01, "arguments": arguments, **more})


def try_all(world: World, names: list[str]) -> None:
    net = network()
    Fsdp(net, world, torch.zeros(2, 3, 4, 4))
    supported, refused = set(), {}
    for name in names:
        try:
            build_optimizer(config_of(name, {**YES, **NO}[name]), net, heads=["5"])
            supported.add(name)
        except RecipeError as error:
            refused[name] = str(error)
    assert supported == YES.keys() & set(names), refused
    assert all("does not support the sharded weights of parallel.strategy=fsdp" in text for text in refused.values())


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["torch.optim:NAdam", "torch.optim:Adafactor"], id="one of each"),
        pytest.param([*YES, *NO], id="all", marks=pytest.mark.slow),
    ],
)
def test_optimizers_are_tried_on_sharded_weights_before_the_training(tmp_path: Path, names: list[str]) -> None:
    run_ranks(try_all, tmp_path, 2, names)


def learn_in_parts(world: World, name: str) -> None:
    """Train the same steps sharded and full: the same weights, whatever the optimizer does with their shards."""
    parts, full, start = network(), network(), network()
    strategy = Fsdp(parts, world, torch.zeros(2, 3, 4, 4))
    optimizers = [build_optimizer(config_of(name, YES[name]), net, heads=["5"]) for net in (parts, full)]
    for step in range(3):
        images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        for net, optimizer in zip((strategy.module, full), optimizers, strict=True):
            nn.functional.cross_entropy(net.train()(images), torch.arange(8) % 5).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    for key, theirs in full.named_parameters():
        mine = full_tensor(parts.get_parameter(key).detach())
        moved = (theirs - start.get_parameter(key)).norm()
        assert (mine - theirs).norm() < 0.05 * moved + 1e-6, key  # Muon computes in bfloat16


@pytest.mark.parametrize("name", ["muon", pytest.param("timm.lamb", marks=pytest.mark.slow), "schedule_free_adamw"])
def test_sharded_weights_are_updated_as_full_ones(tmp_path: Path, name: str) -> None:
    run_ranks(learn_in_parts, tmp_path, 2, name)


def clip_in_parts(world: World, options: dict[str, float]) -> None:
    parts, full = network(), network()
    Fsdp(parts, world, torch.zeros(2, 3, 4, 4))
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for net in (parts, full):
        (nn.functional.cross_entropy(net(images), torch.arange(8) % 5) * 10).backward()  # type: ignore[no-untyped-call]
        clip = build_clipping(Train(epochs=1, **options), net, heads=["5"])
        assert clip is not None
        clip(list(net.parameters()))
    for (key, mine), theirs in zip(parts.named_parameters(), full.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(full_tensor(mine.grad), theirs.grad, msg=key)


@pytest.mark.parametrize("options", [{"agc": 0.01}, {"clip_value": 0.02}])
def test_sharded_gradients_are_clipped_as_full_ones(tmp_path: Path, options: dict[str, float]) -> None:
    run_ranks(clip_in_parts, tmp_path, 2, options)
