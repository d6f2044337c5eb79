"""Builds the schedule of the learning rate: its factor as a function of the step.

Most are pure functions of the step. `plateau`, and objects of the user that have `state_dict` and `load_state_dict`,
have a state, which a checkpoint stores.
"""

import copy
import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

from distrain import config as recipe
from distrain.config.metrics import ALWAYS_MEASURED, METRICS
from distrain.config.user_code import find_refusal, is_reference, load_reference
from distrain.errors import RecipeError
from distrain.tensors.module_state import Stateful, Tensors, as_stateful, pack, unpack

Factor = Callable[[int], float]
Evaluation = Mapping[str, float]

_STATE = "state"


class LrSchedule:
    """The factor of the base learning rate at a step, counted from 0.

    `state` is the object with the state of the schedule, None for a pure function of the step. It is called once for a
    step, and `observe` passes it each evaluation after the first step.
    """

    def __init__(self, factor: Factor, state: Stateful | None = None) -> None:
        self._factor = factor
        self._state = state
        self._last: tuple[int, float] | None = None  # step and factor of the last call

    def __call__(self, step: int) -> float:
        """Return the factor for the update of a step, which is the same in a second call for the last step."""
        if self._state is None:
            return self._factor(step)
        if self._last is None or self._last[0] != step:
            self._last = step, self._factor(step)
        return self._last[1]

    @property
    def is_stateful(self) -> bool:
        """Whether it is more than a function of the step."""
        return self._state is not None

    def observe(self, step: int, evaluation: Evaluation) -> None:
        """Let a schedule that follows the validation see its metrics, by their names in `metrics.jsonl`."""
        if step > 0 and (observe := getattr(self._state, "observe", None)) is not None:
            observe(step, evaluation)

    def tensors(self) -> Tensors:
        """Return the state, packed; empty for a pure function."""
        if self._state is None:
            return {}
        return pack({_STATE: {"last": self._last, "own": self._state.state_dict()}}, owner="the schedule")

    def load(self, packed: Tensors) -> None:
        """Restore a state that `tensors` has returned; an empty one, of a run that began without, changes nothing."""
        if self._state is None or not packed:
            return
        state = unpack(packed)[_STATE]
        self._last = state["last"]
        self._state.load_state_dict(state["own"])


class Plateau:
    """Multiplies the learning rate by `gamma` when the validation has made no progress for some evaluations.

    The rule is that of torch's `ReduceLROnPlateau` with a relative threshold.
    """

    def __init__(self, config: recipe.Schedule) -> None:
        self._metric = config.metric or ALWAYS_MEASURED
        self._is_higher_better = METRICS[self._metric].is_higher_better
        self._gamma = 0.1 if config.gamma is None else config.gamma
        self._least = config.final_factor or 0.0
        self._patience = 10 if config.patience is None else config.patience
        self._threshold = 1e-4 if config.threshold is None else config.threshold
        self._cooldown = config.cooldown or 0
        self._factor = 1.0
        self._best: float | None = None
        self._num_bad = 0
        self._rest = 0  # evaluations that do not count yet

    def __call__(self, _: int) -> float:
        """Return the current factor."""
        return self._factor

    def observe(self, _: int, evaluation: Evaluation) -> None:
        """Count an evaluation with or without progress."""
        value = evaluation[f"val/{self._metric}"]
        if self._is_progress(value):
            self._best, self._num_bad = value, 0
        else:
            self._num_bad += 1
        if self._rest > 0:
            self._rest, self._num_bad = self._rest - 1, 0
        if self._num_bad > self._patience:
            self._factor = max(self._factor * self._gamma, self._least)
            self._rest, self._num_bad = self._cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what the evaluations have changed."""
        return {"factor": self._factor, "best": self._best, "num_bad": self._num_bad, "rest": self._rest}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore such a state."""
        self._factor, self._best = state["factor"], state["best"]
        self._num_bad, self._rest = state["num_bad"], state["rest"]

    def _is_progress(self, value: float) -> bool:
        if self._best is None:
            return math.isfinite(value)
        if self._is_higher_better:
            return value > self._best * (1 + self._threshold)
        return value < self._best * (1 - self._threshold)


def build_schedule(config: recipe.Schedule, *, steps_per_epoch: int, total_steps: int) -> LrSchedule:
    """Return the schedule of a recipe: the same factors at every start and resume.

    Raises `RecipeError` for a schedule of the user that is not one.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    state: Stateful | None = None
    if config.name == "plateau":
        factor: Factor = Plateau(config)
        state = as_stateful(factor)
    elif is_reference(config.name):
        factor, state = _build_own(config, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    else:
        factor = _factor(config, steps_per_epoch=steps_per_epoch, warmup_steps=warmup_steps, total_steps=total_steps)
    if warmup_steps == 0:
        return LrSchedule(factor, state)
    return LrSchedule(lambda step: (step + 1) / (warmup_steps + 1) if step < warmup_steps else factor(step), state)


def _build_own(config: recipe.Schedule, *, steps_per_epoch: int, total_steps: int) -> tuple[Factor, Stateful | None]:
    """Return the user's schedule, and the same object where it has a state.

    A class is called with the arguments, a function is called with them after the step; both also with `total_steps`
    and `steps_per_epoch`, where they have these as arguments. An object is copied, so that each attempt has its own.
    """
    title, named = f"schedule.name={config.name}", load_reference(config.name, key="schedule.name")
    if not callable(named):
        raise RecipeError(f"{title} is {named!r:.60}; name a function of the step, or a class or object that is one")
    lengths = {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
    arguments = {key: value for key, value in lengths.items() if _has_argument(named, key)} | config.arguments
    if isinstance(named, type):
        if (refusal := find_refusal(named, arguments)) is not None:
            raise RecipeError(f"{title} with schedule.arguments: {refusal}")
        named, arguments = named(**arguments), {}
        if not callable(named):
            raise RecipeError(f"{title} has no method __call__(step), which returns the factor of the learning rate")
    own = copy.deepcopy(named) if not inspect.isfunction(named) else named
    if (refusal := find_refusal(partial(own, 0), arguments)) is not None:
        raise RecipeError(f"{title} is not a function of the step: {refusal}")

    def factor(step: int) -> float:
        value = own(step, **arguments)
        number = float(value) if isinstance(value, Real) else math.nan
        if not (math.isfinite(number) and number >= 0):
            raise RecipeError(f"{title} gives {value!r:.60} for step {step}; return a number that is not negative")
        return number

    state = as_stateful(own)
    if state is None:
        for step in (0, total_steps - 1):
            factor(step)
    return factor, state


def _has_argument(named: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(named).parameters
    except ValueError:  # a function written in C may have no signature
        return False


def _factor(config: recipe.Schedule, *, steps_per_epoch: int, warmup_steps: int, total_steps: int) -> Factor:
    gamma = 0.1 if config.gamma is None else config.gamma
    if config.name == "constant":
        return lambda _: 1.0
    if config.name == "step":
        assert config.step_epochs is not None
        unit = config.step_epochs * steps_per_epoch
        return lambda step: gamma ** math.floor(step / unit)
    if config.name == "multistep":
        assert config.milestones_epochs is not None
        milestones = [m * steps_per_epoch for m in config.milestones_epochs]
        return lambda step: gamma ** bisect_right(milestones, step)
    if config.name == "cosine":
        # Loshchilov and Hutter, "SGDR", 2017, without restarts, over the steps that follow the warm-up.
        return lambda step: _cosine(step - warmup_steps, total_steps - warmup_steps, 1.0, config.final_factor or 0.0)
    if config.name == "triangle":
        top = int((0.3 if config.pct_start is None else config.pct_start) * total_steps)
        ends = config.first_factor or 0.0, config.final_factor or 0.0
        return lambda step: (
            ends[0] + (1 - ends[0]) * step / top
            if step < top
            else ends[1] + (1 - ends[1]) * (total_steps - step) / (total_steps - top)
        )
    if config.name in {"poly", "restarts", "wsd"}:
        return _factor_to_end(config, steps_per_epoch=steps_per_epoch, first=warmup_steps, total_steps=total_steps)
    assert config.name == "onecycle"
    # Smith and Topin, "Super-Convergence", 2018, in torch's two-phase form with cosine annealing.
    # Where there are too few steps to rise in, as in a run of one, the peak is the first of them.
    peak = max(0.0, (0.3 if config.pct_start is None else config.pct_start) * total_steps - 1)
    first = 1 / (config.div_factor or 25.0)
    last = first / (config.final_div_factor or 1e4)
    return lambda step: (
        _cosine(step, peak, first, 1.0) if step <= peak else _cosine(step - peak, total_steps - 1 - peak, 1.0, last)
    )


def _factor_to_end(config: recipe.Schedule, *, steps_per_epoch: int, first: int, total_steps: int) -> Factor:
    """Return a curve from 1 in step `first`, after the warm-up, to `schedule.final_factor`."""
    end = config.final_factor or 0.0
    if config.name == "poly":
        power = config.power or 1.0
        return lambda step: end + (1 - end) * (1 - (step - first) / (total_steps - first)) ** power
    if config.name == "restarts":
        # Loshchilov and Hutter, "SGDR", 2017.
        assert config.period_epochs is not None
        period, factor = config.period_epochs * steps_per_epoch, config.period_factor or 1
        return lambda step: _cosine(*_place_in_period(step - first, period, factor), 1.0, end)
    # Hu et al., "MiniCPM", 2024; the square root is from Hägele et al., "Scaling laws and compute-optimal training
    # beyond fixed training durations", 2024.
    assert config.decay_epochs is not None
    start = max(first, total_steps - round(config.decay_epochs * steps_per_epoch))
    shape = _DECAYS[config.decay_shape or "linear"]
    return lambda step: 1.0 if step < start else end + (1 - end) * shape((step - start) / (total_steps - start))


_DECAYS: dict[str, Callable[[float], float]] = {  # from 1 at share 0 of the decay to 0 at share 1
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "sqrt": lambda share: 1 - math.sqrt(share),
}


def _place_in_period(step: float, period: float, factor: int) -> tuple[float, float]:
    """Return the steps since the last restart, and the length of the period that began there."""
    if factor == 1:
        return step % period, period
    while step >= period:
        step -= period
        period *= factor
    return step, period


def _cosine(step: float, steps: float, start: float, end: float) -> float:
    share = min(1.0, step / steps) if steps > 0 else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
