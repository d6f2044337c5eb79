"""Schedules are functions of the step, and equal to torch's own schedulers at every step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from distrain.optim import build_schedule
from distrain.recipe import Schedule

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
