"""A network whose activations are computed again trains to the same bits as without, with less memory."""

import copy
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from distrain.config import Recipe, load_recipe
from distrain.config.batching import solve_batching
from distrain.data.loading.epoch_order import uniform_order
from distrain.data.loading.sampler import TrainSampler
from distrain.distributed.compile import compile_network
from distrain.distributed.parallelize import build_strategy
from distrain.distributed.recompute import recompute_blocks, turn_on
from distrain.distributed.world import World
from distrain.errors import ModelError, RecipeError
from distrain.tensors.autocast import DTYPES, autocast
from distrain.training.determinism import seed_model_draws
from tests.processes import run_ranks

SIZE, STEPS = 4, 2
SAMPLES = torch.randn(4 * SIZE * STEPS - 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Everything that a second pass could change or draw otherwise: BatchNorm, spectral norm, dropout, a buffer."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)
        self.mix = spectral_norm(nn.Linear(after, after))
        self.dropout = nn.Dropout(0.3)
        self.level: torch.Tensor
        self.register_buffer("level", torch.ones(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.conv(features))) * self.level.clone()
        if self.training:
            self.level.mul_(0.9).add_(features.detach().mean() * 0.1)
        return self.dropout(self.mix(features.movedim(1, -1)).movedim(-1, 1))  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(3, 4), Block(4, 4), Block(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(images).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class Counting(Block):
    """Changes what a second pass cannot see as it was: a number that is in no buffer."""

    passes = 1

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return super().forward(features) * self.passes


def recipe(*overrides: str) -> Recipe:
    return load_recipe("digits", overrides=list(overrides))


def train(world: World, net: nn.Module, config: Recipe, *, steps: int = STEPS) -> list[torch.Tensor]:
    """Train a few steps of two micro-batches, the last of them smaller, and return all weights and buffers."""
    batching = solve_batching(4 * SIZE, SIZE, world.size, is_exact=config.train.exact)
    order = TrainSampler(
        num_samples=len(SAMPLES),
        sampler=partial(uniform_order, num_samples=len(SAMPLES), seed=0),
        batching=batching,
        drop_last=False,
        rank=world.rank,
    )
    compile_network(config, net, world, micro_batch_size=SIZE, num_micro_batches=2, processes=world.size)
    recompute_blocks(config, net, world, SAMPLES[:2])
    parallel = build_strategy(config, net, world, batching=batching, example=SAMPLES[:2])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, foreach=False)
    chosen = order.micro_batches(range(steps))
    for step in range(steps):
        global_batch = order.global_batch(step)
        replica = parallel.begin_step(global_batch, step)
        for index in global_batch.local:
            images = SAMPLES[next(chosen).indices]
            seed_model_draws(0, step, index, range(0), everywhere=False)
            with parallel.micro_batch(global_batch, index):
                share = len(images) * parallel.loss_scale / global_batch.num_samples
                with autocast(DTYPES[config.precision], "cpu"):
                    loss = replica(images).float().square().mean() * share
                loss.backward()
        parallel.finish_step(global_batch, step)
        optimizer.step()
        parallel.zero_grad()
    parallel.close()
    whole = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in net.state_dict().items()}
    return [tensor.detach().clone() for tensor in whole.values()]


def compare(world: World, name: str, overrides: list[str]) -> None:
    net = make(name)
    torch.compile = partial(torch.compile, backend="aot_eager")  # the machine code takes a minute to make
    plain = train(world, copy.deepcopy(net), recipe(*overrides))
    again = train(world, net, recipe(*overrides, "compute.recompute=true"))
    assert [t.dtype for t in again] == [t.dtype for t in plain]
    assert all(map(torch.equal, again, plain))


def make(name: str = "own") -> nn.Module:
    torch.manual_seed(0)
    if name == "own":
        return Net()
    import timm

    size: dict[str, Any] = {"img_size": 16} if name == "test_vit" else {}
    return timm.create_model(name, num_classes=2, drop_path_rate=0.2, **size)


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (1, ["precision=bf16"]),
        (2, ["parallel.strategy=ddp"]),
        (2, ["parallel.strategy=fsdp", "precision=bf16"]),
        (2, ["train.exact=true"]),
        pytest.param(1, ["compute.compile=regional"], marks=pytest.mark.slow),
        pytest.param(2, ["parallel.strategy=fsdp"], marks=pytest.mark.slow),
        pytest.param(2, ["parallel.strategy=fsdp", "compute.compile=regional"], marks=pytest.mark.slow),
    ],
)
def test_blocks_that_run_again_train_to_the_same_bits(tmp_path: Path, world_size: int, overrides: list[str]) -> None:
    run_ranks(compare, tmp_path, world_size, "own", overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("test_resnet", ["train.exact=true"]),  # BatchNorm
        pytest.param("test_vit", ["precision=bf16"], marks=pytest.mark.slow),  # stochastic depth
        pytest.param("test_efficientnet", ["train.exact=false"], marks=pytest.mark.slow),
    ],
)
def test_timm_chooses_its_own_blocks(
    tmp_path: Path, name: str, overrides: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "distrain")
    pytest.importorskip("timm")
    run_ranks(compare, tmp_path, 1, name, overrides)
    assert "the blocks that timm chooses run again in the backward pass" in caplog.text


def test_activations_of_blocks_are_not_kept() -> None:
    kept = {}
    for is_on in (False, True):
        net = make().train()
        if is_on:
            turn_on(recipe(), net)
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            net(SAMPLES)
        kept[is_on] = sum(sizes.values())
    assert kept[True] < 0.4 * kept[False]


def test_network_that_cannot_run_again_is_one_sentence() -> None:
    world, config = World(rank=0, size=1, local_rank=0, device=torch.device("cpu")), recipe("compute.recompute=true")
    net: Any = Net()
    net.blocks = nn.Sequential(Counting(3, 4), Counting(4, 4))
    with pytest.raises(ModelError, match=r"compute\.recompute=true changes what .* computes \(.* differs\)"):
        recompute_blocks(config, net, world, SAMPLES[:2])
    with pytest.raises(ModelError, match=r"finds no repeated blocks in model\.name"):
        recompute_blocks(config, nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), world, SAMPLES[:2])
    with pytest.raises(RecipeError, match=r"compute\.recompute and compute\.compile=whole exclude each other"):
        recipe("compute={recompute: true, compile: whole}")


def test_evaluation_runs_once() -> None:
    net = make().eval()
    with torch.no_grad():
        before = net(SAMPLES)
        turn_on(recipe(), net)
        assert torch.equal(net(SAMPLES), before)
