"""Begins a sweep or continues one: resolves what is requested, checks it, and writes the folder of the sweep."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrain.config import Recipe, change_recipe, load_recipe, read_recipe
from distrain.config.metrics import METRICS
from distrain.errors import RecipeError, RunError
from distrain.launchers.prepare import check_data, check_schedule
from distrain.launchers.slurm.code_snapshot import take_snapshot
from distrain.launchers.warm_start import pin_weights
from distrain.messages import nearest
from distrain.runs.directory import RunDirectory
from distrain.service.sweeps.folder import SweepFolder, find_sweep
from distrain.service.sweeps.parameters import Parameter, as_overrides, read_parameters
from distrain.service.sweeps.results import read_sign
from distrain.service.sweeps.rungs import check_rungs, choose_rungs, cut_cohorts
from distrain.service.sweeps.spec import MIN_LAG, SweepSpec, as_spec, check_name
from distrain.service.sweeps.suggestion import check_optuna, check_sampler, count_grid
from distrain.system.files import write_atomically

_TRIALS = 20
_TARGET_METRICS = {"class": "top1", "labels": "f1", "values": "mae"}  # as `eval.best` chooses


@dataclass(frozen=True)
class OpenSweep:
    """A sweep whose folder exists: its spec is complete."""

    folder: SweepFolder
    spec: SweepSpec
    base: Recipe
    parameters: Sequence[Parameter]

    @property
    def sign(self) -> int:
        """1 where a higher value of the metric is better, else -1."""
        return read_sign(self.spec.metric or "")


@dataclass(frozen=True)
class Request:
    """A sweep as requested: checked, and not written yet. `earlier` is the spec of the sweep that it continues."""

    sweep: OpenSweep
    earlier: SweepSpec | None
    notes: Sequence[str]


def resolve(given: Mapping[str, Any], *, root: Path) -> Request:
    """Resolve and check a sweep; writes nothing.

    `given` are keys of `SweepSpec`: the rest is that of the sweep of this name below `root`, which is continued, or the
    default. Raises a `UserError` for an invalid request.
    """
    check_optuna()
    given, name = _normalized(given), given.get("name")
    existing = None if name is None else find_sweep(str(name), root)
    if existing is None:
        return _resolve_new(given, root=root.absolute())
    earlier = existing.read_spec()
    asked = {key: value for key, value in given.items() if key != "name"}
    spec = as_spec({**earlier.model_dump(), **asked}, noun="the sweep")
    spec.check_continues(earlier)
    done, wanted = earlier.trials or 0, spec.trials or 0
    if wanted < done:
        raise RunError(f"sweep {existing.name} has {done} trials; --trials {wanted} cannot take any back")
    if wanted > done:
        more = cut_cohorts(wanted - done, len(spec.rungs or ())) if spec.prune == "asha" else ()
        spec = spec.model_copy(update={"cohorts": (*spec.cohorts, *more)})
    _check_parallel(spec)
    return Request(
        OpenSweep(existing, spec, read_recipe(existing.base), read_parameters(spec.params)), earlier, notes=()
    )


def write(request: Request, *, is_snapshot: bool) -> None:
    """Create the folder of a new sweep with the base recipe and a copy of the code, or save what has changed."""
    sweep, folder = request.sweep, request.sweep.folder
    if request.earlier is None:
        folder.path.mkdir(parents=True, exist_ok=True)
        if is_snapshot:
            take_snapshot(Path.cwd(), folder.code, extras=[])
        else:
            shutil.rmtree(folder.code, ignore_errors=True)
        write_atomically(folder.base, sweep.base.to_yaml())
    if sweep.spec != request.earlier:
        folder.write_spec(sweep.spec)


def _normalized(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys with ranges and metric as they are stored, so that two ways to write them are equal."""
    changed = dict(given)
    if "params" in given:
        as_spec({"recipe": "", "params": given["params"]}, noun="the sweep")
        changed["params"] = {parameter.key: parameter.range for parameter in read_parameters(given["params"])}
    if isinstance(given.get("metric"), str):
        changed["metric"] = f"val/{given['metric'].removeprefix('val/')}"
    return changed


def _resolve_new(given: Mapping[str, Any], *, root: Path) -> Request:
    if "recipe" not in given:
        name = given.get("name")
        raise RunError(
            "a new sweep needs a recipe: `distrain sweep digits --param optimizer.lr='log(1e-3, 1)'`"
            if name is None
            else f"there is no sweep {name!r} in {root}; a new one needs a recipe and --param"
        )
    spec = as_spec(dict(given), noun="the sweep")
    base = load_recipe(spec.recipe, overrides=list(spec.set), data=spec.data)
    name = spec.name or f"{base.name}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    check_name(name)
    folder = SweepFolder(root / name)
    _check_free(folder)
    base = pin_weights(base, RunDirectory(folder.path), stored=None, root=root)
    notes = check_data(base)
    check_schedule(base)
    parameters = read_parameters(spec.params)
    _check_keys(base, parameters)
    check_sampler(spec.sampler, parameters)
    return Request(OpenSweep(folder, _complete(spec, base, parameters, folder.name), base, parameters), None, notes)


def _complete(spec: SweepSpec, base: Recipe, parameters: Sequence[Parameter], name: str) -> SweepSpec:
    """Return the spec with all that it leaves open."""
    rungs, unit = spec.rungs, spec.rung_unit
    if spec.prune == "none":
        if rungs:
            raise RecipeError("--rungs is for --prune asha and --prune median; choose one of them")
        rungs = ()
    elif rungs is None:
        rungs, unit = choose_rungs(base, spec.prune)
    check_rungs(base, rungs, unit)
    trials = spec.trials or (count_grid(parameters) if spec.sampler == "grid" else _TRIALS)
    if spec.seeds and not spec.top:
        raise RecipeError("--seeds needs --top, the number of trials that are repeated")
    update = {
        "name": name,
        "metric": _read_metric(spec.metric, base),
        "trials": trials,
        "lag": spec.lag or max(spec.parallel, MIN_LAG),
        "rungs": rungs,
        "rung_unit": unit,
        "cohorts": cut_cohorts(trials, len(rungs)) if spec.prune == "asha" else (),
    }
    complete = spec.model_copy(update=update)
    _check_parallel(complete)
    return complete


def _check_parallel(spec: SweepSpec) -> None:
    if spec.reproducible and spec.parallel > (spec.lag or 1):
        raise RecipeError(
            f"--parallel {spec.parallel} is more than --lag {spec.lag}: trial n is suggested from trials up to "
            f"n - {spec.lag}, so at most {spec.lag} can run at a time"
        )


def _read_metric(metric: str | None, base: Recipe) -> str:
    """Return the metric as the key of an evaluation, `val/NAME`; raises `RecipeError` for an unknown one."""
    if metric is None:
        return f"val/{base.eval.best or _TARGET_METRICS[base.data.target]}"
    name = metric.removeprefix("val/")
    known = METRICS.get(_base_name(metric))
    if known is None or not (known.is_number or "/" in name):
        names = [f"val/{each}" for each, one in METRICS.items() if one.is_number]
        raise RecipeError(
            f"--metric {metric} is not a metric of evaluations{nearest(f'val/{name}', names) or f'; use {names[1]}'}"
        )
    return f"val/{name}"


def _base_name(metric: str) -> str:
    """Return the name of a metric without `val/` and without the class that it is of."""
    return metric.removeprefix("val/").partition("/")[0]


def _check_keys(base: Recipe, parameters: Sequence[Parameter]) -> None:
    """Raise `RecipeError` where none of the values of a parameter is valid, as for a key that does not exist."""
    for parameter in parameters:
        faults: list[RecipeError] = []
        for value in parameter.examples:
            try:
                change_recipe(base, as_overrides({parameter.key: value}))
            except RecipeError as error:
                faults.append(error)
        if len(faults) == len(parameter.examples):
            raise RecipeError(f"--param {parameter.key}: {faults[0]}")


def _check_free(folder: SweepFolder) -> None:
    found = [] if not folder.path.exists() else list(folder.path.iterdir()) if folder.path.is_dir() else [folder.path]
    if not all(folder.is_of_a_start(path) for path in found):
        is_run = RunDirectory(folder.path).exists
        what = "is a run" if is_run else "exists and is no sweep"
        raise RunError(f"{folder.path} {what}; choose another --name")
    if taken := next(iter(sorted(folder.path.parent.glob(f"{folder.name}-[0-9][0-9][0-9][0-9]*"))), None):
        raise RunError(f"{taken} exists, which is the name of a trial of {folder.name}; choose another --name")
