"""Resolves and checks a request to train on this machine; writes nothing."""

import os
import shlex

from distrain.config import Recipe
from distrain.config.batching import Batching, solve_batching
from distrain.config.profile import LaunchOptions, Profile, read_profile, resolve_profile
from distrain.errors import LaunchError, PreflightError
from distrain.launchers import LAUNCHERS
from distrain.launchers.extension import find_changes, is_extended
from distrain.launchers.fit_request import FitRequest, ResolvedFit
from distrain.launchers.preflight import collect_errors, find_rendezvous_fault, find_shortages
from distrain.launchers.prepare import check_data, check_schedule, resolve_run
from distrain.launchers.profile_files import read_launch_options
from distrain.launchers.slurm import srun
from distrain.runs.directory import RunDirectory
from distrain.system.network import split_endpoint


def resolve(request: FitRequest) -> ResolvedFit:
    """Resolve the request on this machine; reads and checks files, and writes nothing.

    Raises a `UserError` for an invalid request and a `PreflightError` for missing resources.
    """
    options = read_launch_options(request.launch, request.options)
    if options.node_rank is None or options.launcher == "slurm":  # else each srun task is one of several nodes
        srun.check_started_once(os.environ, command="fit")
    run, recipe, changes = resolve_run(
        request.reference, list(request.overrides), request.data, request.run, request.debug_options
    )
    is_finished = run.exists and run.read_status().state == "finished" and not is_extended(run, recipe)
    starts = not (request.dry_run or is_finished)
    if starts:
        run.check_writable(otherwise=_elsewhere(run))
    profile, batchings, notes = _check(request, run, recipe, options, preflight=request.preflight and starts)
    fit = ResolvedFit(
        run=RunDirectory(run.path, node_rank=profile.node_rank),
        recipe=recipe,
        changes=changes,
        profile=profile,
        batchings=batchings,
        plan=LAUNCHERS[profile.launcher](profile, run.path),
        notes=notes,
        is_finished=is_finished,
        extension=find_changes(run, recipe),
        objects=request.objects,
    )
    if starts and fit.spans_nodes and request.run is None:
        raise LaunchError("several nodes need one run directory, on a shared file system; name it with --run DIR")
    return fit


def _elsewhere(run: RunDirectory) -> str:
    if not run.exists:
        return "name another run directory with --run"
    return f"continue a copy of it (`cp -r {shlex.quote(str(run.path))} NEW`, then `distrain fit --run NEW`)"


def _check(
    request: FitRequest, directory: RunDirectory, recipe: Recipe, options: LaunchOptions, *, preflight: bool
) -> tuple[Profile, list[Batching], list[str]]:
    """Return the profile, the batching for each number of processes that it allows, and notes on the data.

    Raises a `PreflightError` with everything that is wrong or missing, before any process is started.
    """
    debug_options = request.debug_options
    train, faults = recipe.train, list[str]()
    profile = None
    batchings: list[Batching] = []
    notes: list[str] = []
    with collect_errors(faults):
        threads = train.threads or (1 if train.exact else None)
        if options.launcher == "slurm":
            stored = read_profile(directory.profile) if directory.profile.exists() else None
            profile = srun.resolve_allocated(options, srun.read_allocation(os.environ), stored=stored, threads=threads)
        else:
            in_one_process = recipe.parallel.strategy == "dp" or debug_options.debug
            name = request.reference or recipe.name
            profile = resolve_profile(options, threads=threads, in_one_process=in_one_process, recipe=name)
        profile = profile.model_copy(update={"trace": debug_options.trace})
        debug_options.check(processes=profile.world_size)
        batchings = [
            solve_batching(recipe.data.batch_size, train.micro_batch_size, world_size, is_exact=train.exact)
            for world_size in profile.world_sizes
        ]
    with collect_errors(faults):
        notes = check_data(recipe)
    if not directory.exists or is_extended(directory, recipe):  # else it resumes with its schedule
        with collect_errors(faults):
            check_schedule(recipe)
    if preflight:
        count = (options.processes or 1) if profile is None else profile.processes
        faults += find_shortages(recipe, directory, processes=count)
        if profile is not None and profile.rendezvous is not None:
            is_local = profile.node_rank == 0
            fault = find_rendezvous_fault(*split_endpoint(profile.rendezvous), is_local=is_local)
            faults += [] if fault is None else [fault]
    if faults or not batchings or profile is None:
        raise PreflightError(faults)
    return profile, batchings, notes
