"""Averages are those of torch, timm and schedulefree; slow weights lead the network's own back every few steps."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from distrain.config import Lookahead, Optimizer
from distrain.training.optim.optimizer import build_optimizer
from distrain.training.optim.weight_averaging import EmaWeights, LookaheadWeights, ScheduleFreeWeights, SwaWeights

TOTAL = 8


@pytest.mark.parametrize("power", [0.0, 3.0])
def test_slow_weights_meet_the_networks_own_every_few_steps_and_at_the_end(power: float) -> None:
    net = nn.BatchNorm1d(2)
    with torch.no_grad():
        net.weight.zero_()
    slow = LookaheadWeights(net, Lookahead(every_steps=3, decay=0.6, power=power), total_steps=TOTAL)
    own = expected = 0.0
    for step in range(TOTAL):
        with torch.no_grad():
            net.weight.add_(1.0)
            net.running_var.add_(1.0)  # type: ignore[union-attr]  # statistics go with the weights
        own += 1.0
        if (step + 1) % 3 == 0:
            kept = 0.6 * ((step + 1) / TOTAL) ** power
            expected = own = kept * expected + (1 - kept) * own
        if step == TOTAL - 1:
            own = expected
        slow.update(step)
        torch.testing.assert_close(net.weight.detach(), torch.full((2,), own))
    assert torch.equal(net.weight, slow.tensors["weight"])
    assert torch.equal(net.running_var, slow.tensors["running_var"])  # type: ignore[arg-type]
    assert net.num_batches_tracked is not None and "num_batches_tracked" not in slow.tensors


def test_constants_that_are_not_finite_stay_as_they_are() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = EmaWeights(net, 0.9)
    slow = LookaheadWeights(net, Lookahead(every_steps=1, decay=0.6), total_steps=2)
    for step in range(2):
        average.update(step)
        slow.update(step)
        assert average.tensors["mask"].tolist() == slow.tensors["mask"].tolist() == [0.0, -torch.inf]
        assert net.get_buffer("mask").tolist() == [0.0, -torch.inf]
    with average.in_place():
        assert net.get_buffer("mask").tolist() == [0.0, -torch.inf]


def test_average_follows_a_buffer_that_is_infinite_at_the_start() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("least", torch.tensor(torch.inf))
    average = EmaWeights(net, 0.9)
    net.get_buffer("least").fill_(3.0)
    average.update(0)
    assert average.tensors["least"] == 3.0


@pytest.mark.parametrize(("warmup", "power"), [(True, 2 / 3), (0.75, 0.75)])
def test_warm_up_of_the_average_equals_timms(warmup: bool | float, power: float) -> None:
    from timm.utils.model_ema import ModelEmaV3

    net = nn.Linear(3, 2)
    average = EmaWeights(net, 0.9, warmup=warmup)
    peer = ModelEmaV3(net, decay=0.9, use_warmup=True, warmup_power=power)
    for step in range(60):
        with torch.no_grad():
            net.weight.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
        average.update(step)
        peer.update(net, step=step + 1)
        torch.testing.assert_close(average.tensors["weight"], peer.module.weight.detach(), msg=f"step {step}")


def test_average_without_a_warm_up_has_its_decay_from_the_start() -> None:
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.0)
    average = EmaWeights(net, 0.9, warmup=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    average.update(0)
    assert average.tensors["weight"].item() == pytest.approx(0.1)


def test_stochastic_average_equals_torchs_averaged_model() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = SwaWeights(net, first_step=4, every_steps=3)
    peer = AveragedModel(net)
    for step in range(12):
        with torch.no_grad():
            net.get_parameter("0.weight").copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
            net.get_buffer("1.running_mean").fill_(step)
        average.update(step)
        if step + 1 >= 4 and (step + 1 - 4) % 3 == 0:
            peer.update_parameters(net)
        assert average.is_active == (step + 1 >= 4)
        if average.is_active:
            torch.testing.assert_close(average.tensors["0.weight"], peer.module.get_parameter("0.weight").detach())
    assert average.tensors["1.running_mean"].tolist() == [9.0, 9.0]  # of the last weights in the mean
    assert average.own_state["swa.count"] == 3


def test_before_there_is_a_stochastic_average_the_networks_own_weights_are_saved() -> None:
    net = nn.Linear(1, 1)
    average = SwaWeights(net, first_step=5, every_steps=1)
    with torch.no_grad():
        net.weight.fill_(7.0)
    average.update(0)
    average.refresh()
    assert average.tensors["weight"].item() == 7.0
    assert not average.is_active


def test_schedule_free_average_is_the_packages_own_and_training_continues_to_the_bit() -> None:
    def make() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        return net, build_optimizer(Optimizer(name="schedule_free_adamw", lr=0.01), net)

    def learn(net: nn.Module, optimizer: Any, step: int) -> None:
        net.zero_grad()
        net(torch.randn(8, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()

    (ours, optimizer), (theirs, peer) = make(), make()
    average = ScheduleFreeWeights(ours, optimizer)
    for step in range(6):
        learn(ours, optimizer, step)
        learn(theirs, peer, step)
        average.update(step)
        average.refresh()  # a checkpoint after each step
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    peer.eval()
    expected = dict(theirs.named_parameters())
    assert all(torch.equal(average.tensors[name], weight) for name, weight in expected.items())
    with average.in_place():
        assert all(torch.equal(weight, expected[name]) for name, weight in ours.named_parameters())
    learn(ours, optimizer, 6)  # back in training mode
