"""Slow weights follow the network's own, and lead them back every few steps and at the end."""

import pytest
import torch
from torch import nn

from distrain.config import Lookahead
from distrain.training.optim.weight_averaging import EmaWeights, LookaheadWeights

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
