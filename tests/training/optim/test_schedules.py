"""Schedules equal torch's own schedulers at every step, and those with a state continue from it."""

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from distrain.config import Schedule
from distrain.errors import RecipeError
from distrain.training.optim.schedules import LrSchedule, build_schedule

STEPS_PER_EPOCH = 7
TOTAL = 70


def build(**config: Any) -> LrSchedule:
    return build_schedule(Schedule.model_validate(config), steps_per_epoch=STEPS_PER_EPOCH, total_steps=TOTAL)


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
    ("config", "peer"),
    [
        ({"name": "poly"}, lambda o: lr_scheduler.PolynomialLR(o, TOTAL)),
        ({"name": "poly", "power": 0.9}, lambda o: lr_scheduler.PolynomialLR(o, TOTAL, power=0.9)),
        (
            {"name": "restarts", "period_epochs": 2, "final_factor": 0.1},
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 14, eta_min=0.1),
        ),
        (
            {"name": "restarts", "period_epochs": 1, "period_factor": 2},
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7, T_mult=2),
        ),
        (
            {"name": "wsd", "decay_epochs": 3},
            lambda o: lr_scheduler.SequentialLR(
                o,
                [lr_scheduler.ConstantLR(o, 1.0), lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=21)],
                milestones=[TOTAL - 21],
            ),
        ),
        (
            {"name": "wsd", "decay_epochs": 3, "decay_shape": "cosine", "final_factor": 0.2},
            lambda o: lr_scheduler.SequentialLR(
                o,
                [lr_scheduler.ConstantLR(o, 1.0), lr_scheduler.CosineAnnealingLR(o, 21, eta_min=0.2)],
                milestones=[TOTAL - 21],
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*epoch parameter")
def test_curve_to_the_end_equals_torchs_scheduler(config: dict[str, Any], peer: Callable[..., Any]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, factor = peer(optimizer), build(**config)
    for step in range(TOTAL):
        assert factor(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6, abs=1e-9), step
        optimizer.step()
        scheduler.step()


def test_wsd_warms_up_stays_and_decays_by_the_square_root() -> None:
    factor = build(name="wsd", warmup_epochs=1, decay_epochs=2, decay_shape="sqrt", final_factor=0.1)
    assert [factor(step) for step in range(7)] == pytest.approx([(step + 1) / 8 for step in range(7)])
    assert {factor(step) for step in range(7, TOTAL - 14)} == {1.0}
    decay = [factor(TOTAL - 14 + step) for step in range(14)]
    assert decay == pytest.approx([0.1 + 0.9 * (1 - math.sqrt(step / 14)) for step in range(14)])


@pytest.mark.parametrize("metric", [None, "top1"])
@pytest.mark.parametrize("cooldown", [0, 2])
def test_plateau_equals_torchs_scheduler_also_after_a_resume(metric: str | None, cooldown: int) -> None:
    config = {"name": "plateau", "patience": 2, "threshold": 0.01, "cooldown": cooldown, "gamma": 0.5, "metric": metric}
    config |= {"final_factor": 0.05}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, "min" if metric is None else "max", factor=0.5, patience=2, threshold=0.01, cooldown=cooldown,
        min_lr=0.05,
    )  # fmt: skip
    schedule, draws, seen = build(**config), random.Random(0), set[float]()
    for number in range(60):
        value = math.nan if number == 7 else draws.gauss(1.0, 0.2) / (1 + number / 30 if metric is None else 1)
        assert schedule(10 * number) == pytest.approx(optimizer.param_groups[0]["lr"]), number
        seen.add(schedule(10 * number))
        schedule.observe(10 * number + 1, {f"val/{metric or 'loss'}": value})
        scheduler.step(value)
        before, schedule = schedule, build(**config)
        schedule.load(before.tensors())
    assert len(seen) > 4
    assert schedule.is_stateful


def test_evaluation_before_the_first_step_does_not_count() -> None:
    schedule = build(name="plateau", patience=0)
    for _ in range(3):
        schedule.observe(0, {"val/loss": 1.0})
    assert schedule(0) == 1.0


def halving(step: int, *, steps_per_epoch: int, floor: float = 0.0) -> float:
    return max(0.5 ** (step // steps_per_epoch), floor)


class Counting:
    """Lowers the rate in each step in which it is called, and forgets nothing in a checkpoint."""

    def __init__(self, decay: float, total_steps: int) -> None:
        assert total_steps == TOTAL
        self.decay, self.factor = decay, 1.0

    def __call__(self, step: int) -> float:
        self.factor *= self.decay
        return self.factor

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor = state["factor"]


counting = Counting(0.5, TOTAL)


def negative(step: int) -> float:
    return -1.0


def test_own_function_of_the_step_gets_the_lengths_that_it_takes() -> None:
    factor = build(name=f"{__name__}:halving", arguments={"floor": 0.1})
    assert not factor.is_stateful
    assert factor.tensors() == {}
    assert [factor(step) for step in (0, 6, 7, 21, 69)] == [1.0, 1.0, 0.5, 0.125, 0.1]


def test_own_schedule_with_a_state_is_called_once_a_step_and_continues_from_it() -> None:
    config = {"name": f"{__name__}:Counting", "arguments": {"decay": 0.5}}
    whole = build(**config)
    assert [whole(step) for step in (0, 0, 1, 1, 2)] == [0.5, 0.5, 0.25, 0.25, 0.125]
    saved = copy.deepcopy(whole.tensors())
    resumed = build(**config)
    resumed.load(saved)
    assert [resumed(step) for step in (2, 3)] == [whole(step) for step in (2, 3)] == [0.125, 0.0625]


def test_object_is_not_shared_between_attempts() -> None:
    first, second = (build(name=f"{__name__}:counting") for _ in range(2))
    assert (first(0), second(0), counting.factor) == (0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("negative", {}, "gives -1.0 for step 0; return a number that is not negative"),
        ("halving", {"ceiling": 1}, "is not a function of the step: got an unexpected keyword argument 'ceiling'"),
        ("Counting", {}, "with schedule.arguments: missing a required argument: 'decay'"),
        ("TOTAL", {}, "is 70; name a function of the step"),
        ("halvin", {}, "has no 'halvin'; did you mean halving?"),
    ],
)
def test_what_is_no_schedule_is_refused(name: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        build(name=f"{__name__}:{name}", arguments=arguments)
    assert sentence in str(refusal.value)
