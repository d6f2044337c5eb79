"""Trains from Python: `fit` and `submit_run`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distrain.api.given import read_given
from distrain.api.launch import OnEvent, start_run
from distrain.api.run import Run
from distrain.config import Recipe
from distrain.config import load_recipe as load
from distrain.config.debug_presets import DebugOptions
from distrain.config.profile import read_options
from distrain.errors import DataError
from distrain.launchers.fit_request import FitRequest, ResolvedFit
from distrain.launchers.prepare import RUNS
from distrain.launchers.profile_files import read_launch_options
from distrain.launchers.slurm import submit as slurm
from distrain.service import queue as local
from distrain.service.queue_choice import choose_queue


def fit(
    recipe: str | Path | None = None,
    *,
    data: str | Path | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002 - as the option of the command line
    device: str | None = None,
    gpus: int | None = None,
    procs: int | None = None,
    launch: str | Path | None = None,
    model: Any = None,
    train: Any = None,
    val: Any = None,
    run: str | Path | None = None,
    debug: bool = False,
    overfit: int | None = None,
    on_event: OnEvent | None = None,
    wait: bool = True,
    progress: bool = True,
) -> Run:
    """Train a recipe in new processes of this machine, or resume the run in the directory `run`.

    Args:
        recipe: A built-in recipe or a YAML file; by default `digits`, or the recipe of `run`.
        data: The data, as for `distrain fit --data`.
        set: Changed values of the recipe by key. Functions and classes may be values, as in `model`.
        device: `cpu` or `cuda`; by default a GPU if there is one.
        gpus: The number of GPUs, one process each.
        procs: The number of CPU processes.
        launch: A launch profile or a YAML file, as for `distrain fit --launch`.
        model: A class or a function that returns a network, which is called with `num_classes` if its signature takes
            it, or a `torch.nn.Module`, whose weights are the initial ones.
        train: A dataset to train on, with `len()`, `dataset[i] -> (image, target)` and `classes`.
        val: A dataset to validate on.
        run: The run directory: a new one, or one to resume.
        debug: A few steps in one process with all checks on, to find an error.
        overfit: Overfit this many batches; fails if the network cannot learn them.
        on_event: A function that is called with each `RunEvent` of the run, in this process.
        wait: Whether to return only when the run has ended; otherwise it trains in the background, and continues when
            this process ends.
        progress: Whether to show the run while waiting.

    What a new process can import is given by reference, `module:name`. Anything else (what a notebook's cells define,
    instances) is given by value: pickled with cloudpickle into the run directory, with its digest in the recipe.

    Raises a `UserError` with the sentence of the command line for an invalid request, before anything is written, and
    what `Run.wait` raises.

    >>> run = distrain.fit("digits", set={"train.max_steps": 40}, device="cpu", progress=False)
    >>> run.status.state
    'finished'

    """
    given = read_given(set, data=data, model=model, train=train, val=val)

    def check(resolved: ResolvedFit) -> None:
        _check_validation(resolved.recipe, has_train=train is not None, has_val=val is not None)

    request = FitRequest(
        reference=None if recipe is None else str(recipe),
        overrides=given.overrides,
        data=None if data is None else str(data),
        run=None if run is None else Path(run),
        launch=None if launch is None else str(launch),
        options=read_options(gpus=gpus, device=device, processes=procs),
        debug_options=DebugOptions(debug=debug, overfit_batches=overfit),
        objects=given.pickles,
    )
    directory, launched = start_run(request, on_event, wait=wait, progress=progress, check=check)
    return Run(directory, launched=launched)


def load_recipe(
    recipe: str | Path,
    *,
    data: str | Path | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002 - as the option of the command line
) -> Recipe:
    """Return a built-in recipe or that of a YAML file, resolved, with changed values; nothing is trained.

    Raises `RecipeError` where it is not valid.

    >>> recipe = distrain.load_recipe("digits", set={"train.epochs": 3})
    >>> recipe.train.epochs, recipe.model.name
    (3, 'digits-cnn')
    >>> size = Path("my.yaml").write_text(recipe.to_yaml())  # a recipe of your own, to edit
    """
    return load(str(recipe), overrides=read_given(set).overrides, data=None if data is None else str(data))


def submit_run(
    recipe: str | Path | None = None,
    *,
    data: str | Path | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002 - as the option of the command line
    device: str | None = None,
    gpus: int | None = None,
    procs: int | None = None,
    launch: str | Path | None = None,
    model: Any = None,
    train: Any = None,
    val: Any = None,
    run: str | Path | None = None,
    queue: str | None = None,
    time: str | None = None,
    priority: int | None = None,
    after: Sequence[str | Path | Run] = (),
    root: str | Path | None = None,
    nodes: int | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    dependency: str | None = None,
    snapshot: bool = True,
) -> Run:
    """Put a run into the queue of this machine, which `distrain serve` trains, or into SLURM's.

    The first arguments are those of `fit`; the others are the options of `distrain submit`, which chooses between the
    two queues in the same way. Returns at once; `Run.wait` waits. Raises a `UserError` for an invalid request.

    >>> run = distrain.submit_run("digits", device="cpu", procs=2, priority=5, queue="local")
    >>> run.status.state
    'queued'
    >>> run.stop().status.state
    'stopped'
    """
    given = read_given(set, data=data, model=model, train=train, val=val)
    options = read_launch_options(
        None if launch is None else str(launch),
        read_options(gpus=gpus, device=device, processes=procs, nodes=nodes),
    )
    waits_for = [os.fspath(other) for other in after]
    of_slurm = {
        "nodes": nodes,
        "partition": partition,
        "account": account,
        "qos": qos,
        "constraint": constraint,
        "dependency": dependency,
    }
    of_local = {"priority": priority, "after": waits_for or None, "root": root}
    path = None if run is None else Path(run)
    is_local, _ = choose_queue(queue, options, run=path, of_slurm=of_slurm, of_local=of_local)
    references, place = [] if recipe is None else [str(recipe)], None if data is None else str(data)
    if is_local:
        queue_options = local.QueueOptions(
            options=options,
            root=RUNS if root is None else Path(root),
            priority=priority or 0,
            after=tuple(waits_for),
            time_limit_s=None if time is None else local.read_time_limit(time),
        )
        jobs = local.resolve(
            references=references, tasks=[], overrides=given.overrides, data=place, run=path, options=queue_options
        )
        _check_validation(jobs[0].recipe, has_train=train is not None, has_val=val is not None)
        local.submit(jobs, is_snapshot=snapshot, extras=[], objects=given.pickles)
        return Run(jobs[0].run)
    sbatch = slurm.SbatchOptions(
        options=options,
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        dependency=dependency,
    )
    job = slurm.resolve(references=references, tasks=[], overrides=given.overrides, data=place, run=path, sbatch=sbatch)
    _check_validation(job.recipes[0], has_train=train is not None, has_val=val is not None)
    slurm.submit(job, is_snapshot=snapshot, extras=[], objects=given.pickles)
    return Run(job.runs[0])


def _check_validation(recipe: Recipe, *, has_train: bool, has_val: bool) -> None:
    """Raise `DataError` where a dataset was given to train on, and nothing to validate on."""
    if has_train and not has_val and recipe.data.val_fraction is None:
        raise DataError("train= needs val=, or set={'data.val_fraction': 0.2} to split some samples off")
