"""Strategies train a network whose weights lie channels last as they train one whose weights are contiguous."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from distrain.config import load_recipe
from distrain.config.batching import solve_batching
from distrain.data.loading.epoch_order import uniform_order
from distrain.data.loading.sampler import TrainSampler
from distrain.data.transforms.pipeline import Normalize
from distrain.distributed.exact import Exact
from distrain.distributed.parallelize import Strategy
from distrain.distributed.single import SingleProcess
from distrain.distributed.world import World
from distrain.models.registry import build_model
from distrain.training.device.precision import MEMORY_FORMATS, to_device
from distrain.training.optim.optimizer import build_optimizer

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, local_rank=0, device=CPU)
BATCHING = solve_batching(8, 4, 1)
IMAGES = torch.randint(256, (24, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def train(make: Callable[[nn.Module], Strategy], memory_format: str, rule: str) -> dict[str, torch.Tensor]:
    overrides = [f"compute.memory_format={memory_format}", "model={name: cifar-cnn, arguments: {dropout: 0}}", rule]
    recipe = load_recipe("cifar10", overrides=overrides)
    torch.manual_seed(0)
    net = to_device(build_model(recipe.model, num_classes=10, in_channels=3), recipe, CPU)
    weight = net.get_parameter("features.1.0.0.weight")
    assert weight.is_contiguous() == (memory_format == "contiguous")
    parallel, optimizer = make(net), build_optimizer(recipe.optimizer, net)
    normalize = Normalize(
        recipe.augment, num_channels=3, device=CPU, memory_format=MEMORY_FORMATS[recipe.compute.memory_format]
    )
    sampler = partial(uniform_order, num_samples=len(IMAGES), seed=0)
    order = TrainSampler(num_samples=len(IMAGES), sampler=sampler, batching=BATCHING, drop_last=False, rank=0)
    for step in range(2):
        global_batch = order.global_batch(step)
        replica = parallel.begin_step(global_batch, step)
        for index in global_batch.local:
            images = normalize(IMAGES[4 * index : 4 * index + 4])
            assert images.is_contiguous() == (memory_format == "contiguous")
            with parallel.micro_batch(global_batch, index):
                (replica(images).square().mean() / 2).backward()
        parallel.finish_step(global_batch, step)
        optimizer.step()
        parallel.zero_grad()
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("strategy", ["single", "exact"])
@pytest.mark.parametrize(
    "rule",
    [
        "optimizer={name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.01}",
        "optimizer={name: adamw, lr: 0.01, eps: 0.01}",
    ],
)
def test_channels_last_trains_as_contiguous_does(strategy: str, rule: str) -> None:
    """Fused rules go through weights and gradients as they lie in memory, and would not notice two orders."""

    def make(module: nn.Module) -> Strategy:
        return SingleProcess(module) if strategy == "single" else Exact(module, ALONE, BATCHING)

    plain, last = (train(make, memory_format, rule) for memory_format in ("contiguous", "channels_last"))
    for name, tensor in plain.items():
        torch.testing.assert_close(last[name], tensor, rtol=1e-3, atol=1e-3)
