"""Optimizers of torch, timm, schedulefree and the user: their own numbers, and refusals in a sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distrain.config import Optimizer
from distrain.errors import RecipeError
from distrain.training.optim.optimizer import build_optimizer, set_learning_rate
from distrain.training.optim.param_groups import ParamGroupOptions


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def learn(net: nn.Module, step: int) -> float:
    images = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    net.zero_grad()
    loss = F.cross_entropy(net(images), torch.arange(8) % 3)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def build(net: nn.Module, **config: Any) -> torch.optim.Optimizer:
    options = {"0.weight": ParamGroupOptions(lr_factor=0.5), "2.bias": ParamGroupOptions(has_decay=False)}
    return build_optimizer(Optimizer.model_validate({"weight_decay": 0.1, **config}), net, options)


def groups_of(net: nn.Module) -> list[dict[str, Any]]:
    """The groups of `build`, written out."""
    weight, bias, last, last_bias = net.parameters()
    return [
        {"params": [weight], "lr": 0.01 * 0.5, "weight_decay": 0.1},
        {"params": [bias, last], "lr": 0.01, "weight_decay": 0.1},
        {"params": [last_bias], "lr": 0.01, "weight_decay": 0.0},
    ]


def timm_lion(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from timm.optim.lion import Lion

    return Lion(groups, betas=(0.9, 0.98))


@pytest.mark.parametrize(
    ("config", "peer"),
    [
        (
            {"name": "torch.optim:NAdam", "arguments": {"decoupled_weight_decay": True, "betas": [0.8, 0.99]}},
            lambda groups: torch.optim.NAdam(groups, decoupled_weight_decay=True, betas=(0.8, 0.99)),
        ),
        ({"name": "torch.optim:SGD", "arguments": {"momentum": 0.9, "dampening": 0.5}},
         lambda groups: torch.optim.SGD(groups, momentum=0.9, dampening=0.5)),
        ({"name": "timm.lion", "arguments": {"betas": [0.9, 0.98]}}, timm_lion),
        ({"name": f"{__name__}:own", "arguments": {"momentum": 0.7}},
         lambda groups: torch.optim.RMSprop(groups, momentum=0.7)),
    ],
)  # fmt: skip
def test_losses_equal_those_of_a_plain_loop(config: dict[str, Any], peer: Callable[..., torch.optim.Optimizer]) -> None:
    ours, theirs = make(), make()
    optimizer, plain = build(ours, lr=0.01, **config), peer(groups_of(theirs))
    rates = [group["lr"] for group in plain.param_groups]
    for step in range(10):
        assert learn(ours, step) == pytest.approx(learn(theirs, step), rel=1e-6)
        set_learning_rate(optimizer, 0.01 * (1 - step / 10))
        for group, rate in zip(plain.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / 10)
        optimizer.step()
        plain.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def own(groups: list[dict[str, Any]], lr: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=lr, momentum=momentum)


def own_groups(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    weights: list[Any] = [weight for group in groups for weight in group["params"]]
    own_groups: list[dict[str, Any]] = [{"params": weights[:1], "lr": 3 * lr}, {"params": weights[1:]}]
    return torch.optim.SGD(own_groups, lr=lr)


def test_groups_of_a_factorys_own_keep_their_ratio() -> None:
    optimizer = build_optimizer(Optimizer(name=f"{__name__}:own_groups", lr=0.5), make())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.75, 0.25]


def half(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups[0]["params"][:2], lr=lr)


def nothing(groups: list[dict[str, Any]], lr: float) -> None:
    return None


class Drawing(torch.optim.SGD):
    """Langevin dynamics: noise in each update."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for weight in group["params"]:
                weight.add_(torch.randn_like(weight), alpha=1e-3)


class Forgetful(torch.optim.SGD):
    """Counts its steps in an attribute, which no state_dict has."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        for group in self.param_groups:
            for weight in group["params"]:
                weight.sub_(weight.grad, alpha=group["lr"] / self.count)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"name": "torch.optim:LBFGS"}, "LBFGS computes the loss several times in a step, by a closure"),
        ({"name": "torch.optim:SparseAdam"}, "SparseAdam cannot update the weights: SparseAdam does not support dense"),
        ({"name": "torch.optim:NAdm"}, "module torch.optim has no 'NAdm'; did you mean NAdam"),
        ({"name": "torch.optim:Rprop", "weight_decay": 0.1}, "optimizer.weight_decay=0.1: torch.optim:Rprop has none"),
        ({"name": "torch.optim:NAdam", "arguments": {"beta": 1}}, "got an unexpected keyword argument 'beta'"),
        ({"name": "torch.optim:NAdam", "arguments": {"eps": -1}}, "cannot be made: Invalid epsilon value: -1"),
        ({"name": "timm.lamd"}, "timm has no optimizer 'lamd'; did you mean"),
        ({"name": "timm.lookahead_adam"}, "name timm.adam, and set train.lookahead={}"),
        ({"name": f"{__name__}:half"}, "does not update 2 weights of its groups; use all of them"),
        ({"name": f"{__name__}:nothing"}, "returns None; return a torch.optim.Optimizer"),
        ({"name": f"{__name__}:Drawing"}, "draws random numbers in its update"),
        ({"name": f"{__name__}:Forgetful"}, "has state outside of its `state` and `param_groups`"),
    ],
)
def test_what_cannot_train_here_is_refused_in_a_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        build_optimizer(Optimizer.model_validate({"lr": 0.1, **config}), make())
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_trying_an_optimizer_changes_neither_the_network_nor_the_random_numbers() -> None:
    net = make()
    before = [weight.detach().clone() for weight in net.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    optimizer = build_optimizer(Optimizer(name="torch.optim:Adagrad", lr=0.1), net)
    assert torch.rand(()) == expected
    assert all(torch.equal(weight, value) for weight, value in zip(net.parameters(), before, strict=True))
    assert all(weight.grad is None for weight in net.parameters())
    assert all(state["step"] == 0 for state in optimizer.state.values())  # Adagrad has a state from the start
