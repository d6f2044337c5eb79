"""FSDP: weights that live in parts are the same weights in training, in evaluation and in a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore

from distrain.config import Model, load_recipe
from distrain.config.profile import Profile
from distrain.distributed.fsdp import Fsdp
from distrain.distributed.world import World
from distrain.models.registry import build_model
from distrain.runs.directory import RunDirectory
from distrain.training import trainer
from distrain.training.monitor import RankMonitor
from tests.cli_runner import metrics
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


SEEN: set[tuple[torch.dtype, torch.dtype]] = set()  # of a matrix and of a vector, in forward passes


class Head(nn.Linear):
    """The last layer, which notes the dtypes that its weights have once they are gathered."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        SEEN.add((self.weight.dtype, self.bias.dtype))
        return super().forward(features)


class Scaled(nn.Module):
    """A network with a weight of its own beside those of its layers, as a vision transformer has class tokens."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(32))
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.body = nn.Sequential(nn.Linear(256, 32), nn.LayerNorm(32), nn.ReLU())
        self.head = Head(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(images)) * self.scale)  # type: ignore[no-any-return]


def network(num_classes: int) -> nn.Module:
    return Scaled(num_classes)


def train(world: World, path: Path, overrides: list[str]) -> str | None:
    """Train through the engine and return the digest of the weights."""
    run = RunDirectory(path)
    if world.is_rank_zero:
        run.create()
    world.barrier()
    profile = Profile(launcher="torchrun", device="cpu", processes=world.size, threads=1)
    with RankMonitor(run, rank=world.rank) as monitor:
        assert trainer.train(load_recipe("digits", overrides=[*SHORT, *overrides]), profile, run, world, monitor)
        world.barrier()
        return monitor.state.snapshot().weights_digest


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


def losses(path: Path) -> list[float]:
    return [value for record in metrics(path) for name, value in record.items() if name in {"train/loss", "val/loss"}]


def train_in_low_precision(world: World, folder: Path, overrides: list[str]) -> None:
    """Train with DDP and with FSDP, and see which dtype FSDP's weights have once they are gathered."""
    for strategy in ("ddp", "fsdp"):
        SEEN.clear()
        train(world, folder / strategy, [*overrides, NEVER, f"parallel.strategy={strategy}"])
    low = torch.bfloat16 if "precision=bf16" in overrides else torch.float16
    assert SEEN - {(torch.float32, torch.float32)} == {(low, torch.float32)}  # at the start they are not divided yet
    found = {strategy: losses(folder / strategy) for strategy in ("ddp", "fsdp")}
    assert len(found["ddp"]) > 8
    assert found["fsdp"] == pytest.approx(found["ddp"], rel=2e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        ["precision=bf16", "train={epochs: 1, micro_batch_size: 10, ema_decay: 0.9}"],
        ["precision=fp16", "train={epochs: 1, clip_norm: 0.5}", "optimizer={name: adamw, lr: 0.003}"],
    ],
)
def test_weights_travel_in_the_dtype_of_autocast_and_losses_are_those_of_ddp(
    tmp_path: Path, overrides: list[str]
) -> None:
    # The last step of an epoch has 24 samples: three micro-batches, the last of 4, or one of 20 and one of 4.
    overrides = [*overrides, "data.batch_size=40", "log.every_steps=1"]
    run_ranks(train_in_low_precision, tmp_path, 2, tmp_path, overrides)


@pytest.fixture
def eight_ranks() -> Iterator[World]:
    """Rank 0 of eight that are not there: what it sends goes nowhere."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield World(rank=0, size=8, local_rank=0, device=torch.device("cpu"))
    dist.destroy_process_group()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("name", "least_groups", "largest_share"),
    [
        ("resnet18", 10, 0.43),
        ("vit_b_16", 13, 0.09),
        ("swin_t", 15, 0.27),
        ("convnext_tiny", 18, 0.17),
        ("efficientnet_v2_s", 42, 0.16),
        ("maxvit_t", 15, 0.20),
    ],
)
def test_fsdp_gathers_a_network_block_by_block(
    eight_ranks: World, name: str, least_groups: int, largest_share: float, frozen: bool
) -> None:
    with torch.device("meta"):
        net = build_model(Model(name=name), num_classes=1000, in_channels=3)
    if frozen:
        for parameter in net.parameters():
            parameter.requires_grad = False
    Fsdp(net, eight_ranks, torch.zeros(1))
    sizes: dict[str, int] = {}  # of what is gathered at once, by the module that has it
    divided = {path for path, module in net.named_modules() if isinstance(module, FSDPModule)}
    for weight_name, weight in net.named_parameters():
        owner = max((path for path in divided if f"{weight_name}.".startswith(f"{path}.") or not path), key=len)
        sizes[owner] = sizes.get(owner, 0) + weight.numel()
    assert len(sizes) >= least_groups
    assert max(sizes.values()) <= largest_share * sum(sizes.values())
