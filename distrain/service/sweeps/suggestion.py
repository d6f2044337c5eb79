"""Suggests the values of a trial, with Optuna: a function of the seed, the number of the trial, and earlier trials."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrain.config.user_code import add_to_sys_path, is_reference, load_reference
from distrain.errors import LaunchError, RecipeError
from distrain.messages import nearest, type_and_first_line
from distrain.rng import Purpose, derive_seed
from distrain.service.sweeps.decisions import Known
from distrain.service.sweeps.parameters import Parameter, Params, as_text

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

SAMPLERS = ("tpe", "random", "grid")


def check_optuna() -> None:
    """Raise `LaunchError` where Optuna is not installed."""
    try:
        with quiet_optuna():
            import optuna  # noqa: F401 - only whether there is one
    except ModuleNotFoundError:
        raise LaunchError("a sweep needs Optuna; install it with: pip install 'distrain[sweep]'") from None


def check_sampler(sampler: str, parameters: Sequence[Parameter]) -> None:
    """Raise `RecipeError` for an unknown sampler, and for a grid over a range that has no end of points."""
    if is_reference(sampler):
        _load_sampler(sampler)
    elif sampler not in SAMPLERS:
        raise RecipeError(f"--sampler {sampler} is none of {', '.join(SAMPLERS)}{nearest(sampler, SAMPLERS, count=1)}")
    if sampler == "grid":
        for parameter in parameters:
            if parameter.kind in {"log", "uniform"}:
                raise RecipeError(
                    f"--sampler grid needs a list of values for {parameter.key}, such as [0.01, 0.1], not a range"
                )


def count_grid(parameters: Sequence[Parameter]) -> int:
    """Return how many points a grid has."""
    return math.prod(len(_points(parameter)) for parameter in parameters)


def suggest(
    parameters: Sequence[Parameter], sampler: str, known: Sequence[Known], number: int, *, seed: int, sign: int
) -> Params:
    """Return the values of trial `number`, from what is known of earlier ones.

    A study with these trials is made for this one suggestion, with a sampler that is seeded by the number: so the
    suggestion depends on nothing else. Raises `RecipeError` where the user's sampler fails.
    """
    if sampler == "grid":
        points = itertools.product(*(_points(parameter) for parameter in parameters))
        point = next(itertools.islice(points, number % count_grid(parameters), None))
        return {parameter.key: value for parameter, value in zip(parameters, point, strict=True)}
    with quiet_optuna():
        import optuna

        drawn = derive_seed(seed, Purpose.SUGGESTION, number) % 2**32
        study = optuna.create_study(
            direction="maximize" if sign > 0 else "minimize", sampler=_build_sampler(sampler, drawn)
        )
        study.add_trials([as_optuna(parameters, each) for each in known])
        try:
            asked = study.ask(distributions(parameters)).params
        except Exception as error:
            if not is_reference(sampler):
                raise
            raise RecipeError(f"--sampler {sampler} fails: {type_and_first_line(error)}") from error
    return {parameter.key: _value(parameter, asked[parameter.key]) for parameter in parameters}


def distributions(parameters: Sequence[Parameter]) -> "dict[str, BaseDistribution]":
    """Return the ranges of the parameters as Optuna has them, by key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for parameter in parameters:
        if parameter.kind == "choices":
            found[parameter.key] = CategoricalDistribution([_label(choice) for choice in parameter.choices])
        elif parameter.kind == "int":
            found[parameter.key] = IntDistribution(int(parameter.low), int(parameter.high))
        else:
            found[parameter.key] = FloatDistribution(parameter.low, parameter.high, log=parameter.kind == "log")
    return found


def as_optuna(parameters: Sequence[Parameter], known: Known, *, rungs: Sequence[int] = ()) -> "FrozenTrial":
    """Return what is known of a trial as a trial of Optuna; `rungs` are in epochs or steps, by default 1, 2, ..."""
    from optuna.trial import TrialState, create_trial

    values = dict(zip(rungs or itertools.count(1), known.rungs, strict=False))
    reached = {step: value for step, value in values.items() if value is not None}
    state = TrialState.FAIL
    if known.is_running:
        state = TrialState.RUNNING
    elif known.value is not None:
        state = TrialState.COMPLETE
    elif reached:
        state = TrialState.PRUNED
    return create_trial(
        state=state,
        value=known.value if state == TrialState.COMPLETE else None,
        params=as_optuna_params(parameters, known.trial.params),
        distributions=distributions(parameters),
        intermediate_values=reached,
    )


def as_optuna_params(parameters: Sequence[Parameter], params: Params) -> dict[str, Any]:
    """Return the values of a trial as Optuna has them: a choice that is a list or a section as text."""
    return {
        parameter.key: _label(params[parameter.key]) if parameter.kind == "choices" else params[parameter.key]
        for parameter in parameters
    }


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from printing: what a sweep says, it says itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna

        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)


def _build_sampler(sampler: str, seed: int) -> Any:
    from optuna.samplers import RandomSampler, TPESampler

    built: dict[str, Callable[[], Any]] = {
        "tpe": lambda: TPESampler(seed=seed, constant_liar=True),  # trials that run keep others from their place
        "random": lambda: RandomSampler(seed=seed),
    }
    return built[sampler]() if sampler in built else _load_sampler(sampler)(seed)


def _load_sampler(sampler: str) -> Any:
    add_to_sys_path(Path.cwd())
    return load_reference(sampler, key="--sampler")


def _points(parameter: Parameter) -> Sequence[Any]:
    return range(int(parameter.low), int(parameter.high) + 1) if parameter.kind == "int" else parameter.choices


def _label(choice: Any) -> Any:
    return choice if choice is None or isinstance(choice, bool | int | float | str) else as_text(choice)


def _value(parameter: Parameter, asked: Any) -> Any:
    if parameter.kind == "choices":
        return next(choice for choice in parameter.choices if _label(choice) == asked)
    return parameter.rounded(asked)
