"""Resolves a request to submit a run: from what REST takes to a job of the queue, checked, with nothing written."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distrain.config.load import builtin_recipes
from distrain.config.profile import LaunchOptions, read_options, read_profile
from distrain.errors import LaunchError, RecipeError, RunError
from distrain.launchers.profile_files import builtin_profiles, read_launch_options
from distrain.messages import nearest
from distrain.runs.directory import RunDirectory
from distrain.runs.recipe_values import read_recipe_values
from distrain.service.devices import list_devices
from distrain.service.queue import QueueOptions, Submission, find_owner_fault, read_time_limit, resolve
from distrain.service.web.api.models import SubmitRequest
from distrain.service.web.security.requests import check_code, check_devices, check_request
from distrain.service.web.site import Site
from distrain.system.files import read_whole


def resolve_request(site: Site, request: SubmitRequest) -> tuple[Submission, RunDirectory | None]:
    """Return the job that a request describes, and the run that it trains again, if it names one.

    Raises a `UserError` for a request that is not valid, or names what only the operator may.
    """
    check_request(
        request.set, data=request.data, data_roots=site.data_roots, root=site.root, allow_code=site.allow_code
    )
    if request.devices is not None:
        kind = request.devices.kind
        check_devices(request.devices.count, available=len(list_devices(kind, slots=site.slots)))
    source = None if request.run is None else _find_source(site, request.run)
    for name in request.after:
        site.find_run(name)
    found = resolve(
        references=[_find_recipe(request.recipe) if source is None else str(source.recipe)],
        tasks=[],
        overrides=as_overrides(request.set),
        data=request.data,
        run=None,
        options=QueueOptions(
            options=_read_launch_options(request, source),
            root=site.root,
            priority=request.priority,
            after=tuple(str(site.root / name) for name in request.after),
            time_limit_s=None if request.time is None else read_time_limit(request.time),
            requeue=request.requeue,
        ),
    )[0]
    if source is None:
        return found, None
    return replace(found, job=found.job.model_copy(update=_read_frozen(source))), source


def as_overrides(changes: Mapping[str, Any]) -> list[str]:
    """Return values by key as `--set` takes them: JSON is YAML."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]


def _find_source(site: Site, name: str) -> RunDirectory:
    """Return a run that is to be trained again; raises `RunError` where others could have changed what it runs."""
    source = site.find_run(name)
    if (fault := find_owner_fault(source)) is not None:
        raise RunError(f"run {name} cannot be submitted again from here: {fault}")
    check_code(read_recipe_values(source), allow_code=site.allow_code)
    return source


def _find_recipe(name: str | None) -> str:
    recipes = builtin_recipes()
    if name is None or name not in recipes:
        hint = nearest(name or "", recipes, count=1) or "; `distrain recipes` lists them"
        raise RecipeError(f"{name!r} is not a built-in recipe{hint}")
    return name


def _read_launch_options(request: SubmitRequest, source: RunDirectory | None) -> LaunchOptions:
    """Return the devices that are requested, over those of the profile, over those of the run."""
    devices = request.devices
    count = None if devices is None else devices.count
    is_gpu = devices is not None and devices.kind == "gpu"
    options = read_options(gpus=count if is_gpu else None, processes=None if is_gpu else count)
    if request.profile is not None:
        if request.profile not in builtin_profiles():
            raise LaunchError(
                f"{request.profile!r} is not a launch profile{nearest(request.profile, builtin_profiles())}"
            )
        return read_launch_options(request.profile, options)
    if devices is None and source is not None and source.profile.exists():
        return read_profile(source.profile).as_options()
    return options


def _read_frozen(source: RunDirectory) -> dict[str, Any]:
    """Return what was frozen when a run was submitted, and for one of `distrain fit` the folder in which it was."""
    job = source.read_local_job()
    if job is not None:
        return {"cwd": job.cwd, "env": job.env, "python": job.python}
    plan = read_whole(source.plan, json.loads) or {}
    return {"cwd": plan["cwd"]} if Path(plan.get("cwd") or "").is_dir() and plan.get("cwd") else {}
