"""Optimizers have the recipe's settings; schedules equal torch's own schedulers at every step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from distrain.config import Optimizer, Schedule
from distrain.training.optim.optimizer import (
    ParamGroupOptions,
    build_optimizer,
    build_schedule,
    set_learning_rate,
    update,
)

STEPS_PER_EPOCH = 7
TOTAL = 70


@pytest.mark.parametrize(
    ("config", "peer"),
    [
        ({"name": "constant"}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        ({"name": "step", "step_epochs": 3}, lambda o: lr_scheduler.StepLR(o, 3 * STEPS_PER_EPOCH, 0.1)),
        (
            {"name": "multistep", "milestones_epochs": [2, 5, 9], "gamma": 0.5},
            lambda o: lr_scheduler.MultiStepLR(o, [14, 35, 63], 0.5),
        ),
        ({"name": "cosine", "final_factor": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL, eta_min=0.1)),
        ({"name": "onecycle"}, lambda o: lr_scheduler.OneCycleLR(o, 1.0, TOTAL, cycle_momentum=False)),
        (
            {"name": "onecycle", "pct_start": 0.5, "div_factor": 10, "final_div_factor": 100},
            lambda o: lr_scheduler.OneCycleLR(
                o, 1.0, TOTAL, pct_start=0.5, div_factor=10, final_div_factor=100, cycle_momentum=False
            ),
        ),
    ],
)
def test_schedule_equals_torchs_scheduler(config: dict[str, Any], peer: Callable[..., Any]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = peer(optimizer)
    factor = build_schedule(Schedule.model_validate(config), steps_per_epoch=STEPS_PER_EPOCH, total_steps=TOTAL)
    for step in range(TOTAL):
        assert factor(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6, abs=1e-9), step
        optimizer.step()
        scheduler.step()


def test_warm_up_rises_in_a_line_to_the_base_and_cosine_falls_to_its_end() -> None:
    config = Schedule(name="cosine", warmup_epochs=2)
    factor = build_schedule(config, steps_per_epoch=STEPS_PER_EPOCH, total_steps=TOTAL)
    rise = [factor(step) for step in range(15)]
    assert rise[:14] == pytest.approx([(step + 1) / 15 for step in range(14)])
    assert rise[14] == 1.0
    fall = [factor(step) for step in range(14, TOTAL)]
    assert fall == sorted(fall, reverse=True)
    assert factor(TOTAL) == pytest.approx(0)


@pytest.mark.parametrize("total", [1, 2, 3, 4, 10])
def test_onecycle_comes_to_its_peak_however_few_steps_it_has(total: int) -> None:
    factor = build_schedule(Schedule(name="onecycle"), steps_per_epoch=1, total_steps=total)
    factors = [factor(step) for step in range(total)]
    assert max(factors) > 0.8
    assert total < 2 or factors[-1] < 0.01


@pytest.mark.parametrize("ends", [(0.2, 0.07), (0.0, 0.0)])
def test_triangle_rises_in_a_line_and_falls_in_a_line(ends: tuple[float, float]) -> None:
    config = Schedule(name="triangle", first_factor=ends[0], pct_start=0.23, final_factor=ends[1])
    factor = build_schedule(config, steps_per_epoch=STEPS_PER_EPOCH, total_steps=TOTAL)
    line = np.interp(np.arange(TOTAL), [0, int(0.23 * TOTAL), TOTAL], [ends[0], 1.0, ends[1]])
    assert [factor(step) for step in range(TOTAL)] == pytest.approx(line.tolist())


def test_even_decay_takes_as_much_off_every_weight_whatever_its_learning_rate() -> None:
    net = torch.nn.Linear(2, 2)
    config = Optimizer(lr=0.5, weight_decay=0.01, lr_factors={"bias": 64}, even_decay=True)
    optimizer = build_optimizer(config, net, {"bias": ParamGroupOptions(lr_factor=64)})
    set_learning_rate(optimizer, 0.5)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.5 * 0.01))


@pytest.mark.parametrize(
    ("config", "peer"),
    [
        ({"name": "step", "step_epochs": 3}, lambda o: lr_scheduler.StepLR(o, 3 * STEPS_PER_EPOCH, 0.1)),
        (
            {"name": "multistep", "milestones_epochs": [3, 5], "gamma": 0.5},
            lambda o: lr_scheduler.MultiStepLR(o, [21, 35], 0.5),
        ),
    ],
)
def test_drops_after_a_warm_up_come_where_torchs_scheduler_has_them(
    config: dict[str, Any], peer: Callable[..., Any]
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = peer(optimizer)
    schedule = Schedule.model_validate({**config, "warmup_epochs": 2})
    factor = build_schedule(schedule, steps_per_epoch=STEPS_PER_EPOCH, total_steps=TOTAL)
    for step in range(TOTAL):
        expected = (step + 1) / 15 if step < 14 else scheduler.get_last_lr()[0]
        assert factor(step) == pytest.approx(expected), step
        optimizer.step()
        scheduler.step()


def test_cosine_after_a_warm_up_equals_torchs_warm_up_and_cosine_in_sequence() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 15, total_iters=14)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, TOTAL - 14, eta_min=0.2)
    peer = lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[14])
    schedule = Schedule(name="cosine", warmup_epochs=2, final_factor=0.2)
    factor = build_schedule(schedule, steps_per_epoch=STEPS_PER_EPOCH, total_steps=TOTAL)
    for step in range(TOTAL):
        assert factor(step) == pytest.approx(peer.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        peer.step()


@pytest.mark.parametrize(
    ("config", "rule", "settings"),
    [
        (
            {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
            torch.optim.SGD,
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        ),
        ({"name": "sgd"}, torch.optim.SGD, {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
        (
            {"name": "adam", "betas": [0.8, 0.9], "eps": 1e-4, "weight_decay": 0.1},
            torch.optim.Adam,
            {"betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1},
        ),
        ({"name": "adamw"}, torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
        (
            {"name": "rmsprop", "alpha": 0.0, "momentum": 0.5, "eps": 1e-3},
            torch.optim.RMSprop,
            {"alpha": 0.0, "momentum": 0.5, "eps": 1e-3, "weight_decay": 0.0},
        ),
        ({"name": "rmsprop"}, torch.optim.RMSprop, {"alpha": 0.99, "momentum": 0.0, "eps": 1e-8}),
    ],
)
def test_optimizer_has_the_settings_of_the_recipe(
    config: dict[str, Any], rule: type[torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    model[0].requires_grad_(requires_grad=False)
    optimizer = build_optimizer(Optimizer.model_validate({"lr": 0.25, **config}), model)
    assert type(optimizer) is rule
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in settings} == settings
    assert group["lr"] == 0.25
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
    set_learning_rate(optimizer, 0.125)
    assert group["lr"] == 0.125


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_update_has_the_bits_of_torchs_own_step(momentum: float, nesterov: bool) -> None:
    config = Optimizer(lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.01)

    def train(
        build: Callable[[torch.nn.Module], torch.optim.Optimizer], step: Callable[[torch.optim.Optimizer], object]
    ) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
        optimizer = build(model)
        for number in range(6):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (number + 1)
            optimizer.zero_grad()
            model(torch.ones(4, 3) * number).square().mean().backward()
            if number < 3:
                model[0].zero_grad()  # it begins later than the other one of its group
            step(optimizer)
        return list(model.parameters())

    def build_theirs(model: torch.nn.Module) -> torch.optim.Optimizer:
        layers = [
            {"params": list(layer.parameters())} for layer in model.children()
        ]  # torch wants each to begin as one
        return torch.optim.SGD(layers, momentum=momentum, nesterov=nesterov, weight_decay=0.01, fused=True)

    theirs = train(build_theirs, lambda optimizer: optimizer.step())
    ours = train(lambda model: build_optimizer(config, model), update)
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
