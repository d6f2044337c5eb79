"""Runs a sweep from Python: `run_sweep`, which `distrain sweep` calls as well."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distrain.config.profile import LaunchOptions, read_options
from distrain.errors import LaunchError
from distrain.launchers.prepare import RUNS
from distrain.launchers.profile_files import read_launch_options
from distrain.service.devices import require_leases, slot_names
from distrain.service.queue import is_served
from distrain.service.sweeps.controller import Controller
from distrain.service.sweeps.own_scheduler import OwnScheduler
from distrain.service.sweeps.results import SweepResult
from distrain.service.sweeps.setup import Request, resolve, write
from distrain.service.sweeps.spec import Places
from distrain.service.sweeps.trial_runs import LocalRuns, SlurmRuns, TrialRuns
from distrain.system.signals import StopRequest, stopping


def run_sweep(
    recipe: str | Path | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    metric: str | None = None,
    trials: int | None = None,
    parallel: int | None = None,
    sampler: str | None = None,
    prune: str | None = None,
    rungs: tuple[int, ...] | None = None,
    seed: int | None = None,
    lag: int | None = None,
    reproducible: bool | None = None,
    top: int | None = None,
    seeds: int | None = None,
    name: str | None = None,
    root: str | Path = RUNS,
    set: Mapping[str, Any] | None = None,  # noqa: A002 - the name of the option
    data: str | Path | None = None,
    device: str | None = None,
    gpus: int | None = None,
    procs: int | None = None,
    queue: str | None = None,
    is_snapshot: bool = False,
    on_event: Callable[[str], None] | None = None,
) -> SweepResult:
    """Search settings of a recipe, and return the trials and the best one; an interrupt saves them and returns.

    `params` are ranges as text, or lists of choices, by key of the recipe. With the `name` of an earlier sweep in
    `root`, that one is continued. `on_event` gets a sentence whenever a trial begins or ends. Raises a `UserError` for
    an invalid request.

        found = run_sweep("digits", params={"optimizer.lr": "log(1e-3, 1)"}, trials=12, parallel=2, name="rates")
        found.best.params, found.best.value
    """
    from distrain.service.sweeps.parameters import as_overrides

    places = {"queue": queue, "device": device, "gpus": gpus, "procs": procs}
    given: dict[str, Any] = {
        "recipe": None if recipe is None else str(recipe),
        "name": name,
        "set": as_overrides(set) if set else None,
        "data": None if data is None else str(data),
        "params": None if params is None else dict(params),
        "metric": metric,
        "trials": trials,
        "parallel": parallel,
        "sampler": sampler,
        "prune": prune,
        "rungs": rungs,
        "seed": seed,
        "lag": lag,
        "reproducible": reproducible,
        "top": top,
        "seeds": seeds,
        "places": {key: value for key, value in places.items() if value is not None} or None,
    }
    request = resolve({key: value for key, value in given.items() if value is not None}, root=Path(root))
    with stopping() as stop:
        return execute(request, stop, is_snapshot=is_snapshot, notify=on_event or _ignore)


def execute(
    request: Request,
    stop: StopRequest,
    *,
    is_snapshot: bool,
    notify: Callable[[str], None],
    watch: Callable[[Controller], None] | None = None,
) -> SweepResult:
    """Run a sweep that is resolved, until its end or a stop; `watch` gets its controller before it begins.

    Raises `RunError` where another controller runs it.
    """
    folder, runs = request.sweep.folder, _find_runs(request, notify)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.hold():
        write(request, is_snapshot=is_snapshot)
        controller = Controller(request.sweep, runs, notify=notify)
        if watch is not None:
            watch(controller)
        return controller.run(stop)


def choose_launch(places: Places) -> LaunchOptions:
    """Return the launch options of the trials; raises `LaunchError` where they contradict each other."""
    options = read_options(gpus=places.gpus, device=places.device, processes=places.procs, nodes=places.nodes)
    return read_launch_options(places.launch, options)


def _find_runs(request: Request, notify: Callable[[str], None]) -> TrialRuns:
    places, folder = request.sweep.spec.places, request.sweep.folder
    options = choose_launch(places)
    if places.queue == "slurm":
        return SlurmRuns(folder, options, places.sbatch)
    if places.sbatch or (places.nodes or 1) > 1:
        raise LaunchError("--sbatch and --nodes are options of SLURM; add --queue slurm")
    require_leases()
    root = folder.path.parent
    if not is_served(root):
        notify(f"no `distrain serve` runs for {root}: this sweep runs its queue meanwhile")

    def pass_on(text: str) -> None:
        """Pass on what the queue says of other runs, and why a trial does not start: the rest the sweep says itself."""
        if not text.startswith(f"{folder.name}-") or " is not started: " in text:
            notify(text)

    return LocalRuns(folder, options, OwnScheduler(root, slots=len(slot_names()), notify=pass_on))


def _ignore(_: str) -> None:
    pass
