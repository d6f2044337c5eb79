"""Muon and a timm optimizer on real images, beside SGD: the loss curves are those of a plain torch loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.optim._optim_factory import create_optimizer_v2
from torch import nn

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.models.cifar import CifarSimpleV3
from distrain.rng import Purpose, derive_seed
from distrain.runs.directory import RunDirectory
from distrain.training import trainer
from distrain.training.monitor import RankMonitor
from tests.checkpoint.factories import SINGLE
from tests.cli_runner import metrics

STEPS = 200
initial: dict[str, torch.Tensor] = {}
inputs: list[torch.Tensor] = []
targets: list[torch.Tensor] = []


class Noting(CifarSimpleV3):
    """The recipe's network, which notes its initial weights and what it is trained on."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, 3)
        initial.update({name: value.clone() for name, value in self.state_dict().items()})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            inputs.append(images.detach().clone())
        return super().forward(images)


def noting_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled():
        targets.append(classes.clone())
    return F.cross_entropy(logits, classes)


def train(folder: Path, data: Path, optimizer: str) -> list[float]:
    """Train the recipe with an optimizer and return the loss of each step."""
    for noted in (initial, inputs, targets):
        noted.clear()
    changes = [
        f"optimizer={optimizer}",
        f"model.name={__name__}:Noting",
        f"loss.name={__name__}:noting_loss",
        f"train={{epochs: 150, max_steps: {STEPS}, seed: 0, micro_batch_size: 32}}",
        "data.val_samples=100",
        "data.num_workers=0",
        "schedule={name: poly, power: 0.9}",
        "log={every_steps: 1, tensorboard: false, wandb: disabled}",
    ]
    run = RunDirectory(folder)
    run.create()
    recipe = load_recipe("cifar10-simple-v3", overrides=changes, data=str(data))
    run.recipe.write_text(recipe.to_yaml())
    with RankMonitor(run, rank=0) as monitor:
        assert trainer.train(
            recipe, Profile(launcher="inprocess", device="cpu", processes=1, threads=1), run, SINGLE, monitor
        )
    return [record["train/loss"] for record in metrics(folder) if "train/loss" in record]


def plain_sgd(net: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)]


def plain_lamb(net: nn.Module) -> list[torch.optim.Optimizer]:
    return [create_optimizer_v2(net.parameters(), "lamb", lr=0.005)]


def plain_muon(net: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the kernels but the first, which share their memory with matrices; AdamW for the rest."""
    kernels = [w for w in net.parameters() if w.ndim == 4][1:]
    matrices = [nn.Parameter(w.detach().flatten(1)) for w in kernels]
    matrices += [net.get_parameter(name) for name, w in net.named_parameters() if w.ndim == 2][:-1]
    taken = {id(w) for w in (*kernels, *matrices)}
    rest = [w for w in net.parameters() if id(w) not in taken]

    def share(*_: object) -> None:
        for weight, matrix in zip(kernels, matrices, strict=False):
            assert weight.grad is not None
            matrix.grad = weight.grad.flatten(1)

    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0)
    muon.register_step_pre_hook(share)
    return [muon, torch.optim.AdamW(rest, lr=0.001, weight_decay=0.0, fused=True)]


def replay(make: Any) -> list[float]:
    """Train in plain PyTorch on the noted batches, without those that were tried before the first step."""
    net = CifarSimpleV3(10, 3)
    net.load_state_dict(initial)
    optimizers: list[torch.optim.Optimizer] = make(net.train())
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    losses = []
    for step, (images, classes) in enumerate(zip(inputs[-STEPS:], targets[-STEPS:], strict=True)):
        torch.manual_seed(derive_seed(0, Purpose.MODEL_DRAW, step, 0))  # the draws of dropout
        loss = F.cross_entropy(net(images), classes)
        net.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, of_groups in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, of_groups, strict=True):
                group["lr"] = rate * (1 - step / STEPS) ** 0.9
            optimizer.step()
        losses.append(loss.item())
    return losses


CASES = {
    "sgd": ("{name: sgd, lr: 0.01, momentum: 0.9}", plain_sgd),
    "muon": ("{name: muon, lr: 0.02, adamw_lr: 0.001}", plain_muon),
    "timm.lamb": ("{name: timm.lamb, lr: 0.005}", plain_lamb),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # Muon's products of bfloat16 are slow on most CPUs
@pytest.mark.parametrize("name", CASES)
def test_losses_on_real_images_are_those_of_a_plain_loop(tmp_path: Path, real_images: Path, name: str) -> None:
    torch.set_num_threads(1)
    optimizer, make = CASES[name]
    ours = train(tmp_path / "run", real_images / "cifar10", optimizer)
    theirs = replay(make)
    assert len(ours) == len(theirs) == STEPS
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    ends = [sum(losses[-50:]) / 50 for losses in (ours, theirs)]
    print(f"{name}: mean loss of the last 50 of {STEPS} steps {ends[0]:.6f}, plain loop {ends[1]:.6f}; "
          f"first {ours[0]:.6f}; largest difference of a step {difference:.2e}")  # fmt: skip
    assert ends[0] < max(ours) - 0.2  # the recipe's SGD first rises
    assert difference < 1e-4
