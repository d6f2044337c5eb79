"""Gathers what the page and the report of a sweep show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distrain.errors import RunError
from distrain.service.sweeps.folder import SweepFolder
from distrain.service.sweeps.parameters import as_text, read_parameters
from distrain.service.sweeps.results import SweepResult, rank, read_result
from distrain.service.web.report.charts import format_number
from distrain.service.web.views.sweep_charts import Contour, Coordinates, draw_contour, draw_coordinates


@dataclass(frozen=True)
class TrialRow:
    """A trial in the table."""

    number: int
    run: str
    state: str
    value: str
    params: tuple[str, ...]
    reason: str
    is_best: bool


@dataclass(frozen=True)
class RepeatRow:
    """A trial that was repeated with other seeds."""

    number: int
    count: int
    mean: str
    spread: str
    values: str


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """A sweep as its page and its report show it."""

    result: SweepResult
    state: str
    headline: str
    keys: tuple[str, ...]
    rows: Sequence[TrialRow]
    repeats: Sequence[RepeatRow]
    importance: Mapping[str, float]
    coordinates: Coordinates | None
    contour: Contour | None

    @property
    def name(self) -> str:
        """The name of the sweep."""
        return self.result.name


@dataclass(frozen=True)
class SweepLine:
    """A sweep in the list of all, and as a JSON object."""

    sweep: str
    state: str
    metric: str
    trials: int
    over: int
    best: float | None
    fault: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return self.__dict__ | {"fault": self.fault or None}


def read_sweep_view(folder: SweepFolder) -> SweepView:
    """Read a sweep; raises `RunError` where its files are damaged."""
    result = read_result(folder)
    spec, parameters, best = result.spec, read_parameters(result.spec.params), result.best
    order = {trial.number: place for place, trial in enumerate(rank(result.trials, sign=result.sign))}
    rows = [
        TrialRow(
            trial.number,
            trial.run,
            trial.state,
            "" if trial.value is None else format_number(result.metric, trial.value),
            tuple(as_text(trial.params.get(each.key)) for each in parameters),
            trial.reason,
            is_best=best is not None and trial.number == best.number,
        )
        for trial in sorted(result.trials, key=lambda trial: (order.get(trial.number, len(order)), trial.number))
    ]
    pruning = "" if spec.prune == "none" else f", pruned by {spec.prune} at {spec.rung_unit} {_list(spec.rungs)}"
    return SweepView(
        result=result,
        state=describe_state(folder, result),
        headline=f"{spec.trials} trials of {spec.recipe} by {spec.sampler}{pruning}, "
        f"compared by {result.metric}, seed {spec.seed}",
        keys=tuple(each.key for each in parameters),
        rows=rows,
        repeats=[
            RepeatRow(
                one.number,
                len(one.values),
                format_number(result.metric, one.mean),
                "" if one.std is None else f"{one.std:.3g}",
                ", ".join(format_number(result.metric, value) for value in one.values),
            )
            for one in result.repeated
        ],
        importance=dict(sorted(result.importance.items(), key=lambda pair: -pair[1])),
        coordinates=draw_coordinates(result, parameters),
        contour=draw_contour(result, parameters),
    )


def list_sweeps(folders: Sequence[SweepFolder]) -> list[SweepLine]:
    """Return the sweeps for a list; one that cannot be read says why."""
    found = []
    for folder in folders:
        try:
            result = read_result(folder)
        except RunError as error:
            found.append(SweepLine(folder.name, "unreadable", "", 0, 0, None, str(error)))
            continue
        best = result.best
        over = sum(trial.is_over for trial in result.trials)
        state, value = describe_state(folder, result), None if best is None else best.value
        found.append(SweepLine(folder.name, state, result.metric, result.spec.trials or 0, over, value))
    return found


def describe_state(folder: SweepFolder, result: SweepResult) -> str:
    """Return whether a controller runs the sweep, it has finished, or it was stopped."""
    return "running" if folder.is_held else "finished" if result.is_over else "stopped"


def _list(rungs: Sequence[int] | None) -> str:
    return ", ".join(map(str, rungs or ()))
