"""Submits runs to SLURM: resolves a request, and calls sbatch."""

import itertools
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from distrain.config import Recipe
from distrain.config.batching import solve_batching
from distrain.config.profile import LaunchOptions, Profile
from distrain.errors import LaunchError, RunError
from distrain.launchers.extension import is_extended
from distrain.launchers.plan import Plan
from distrain.launchers.prepare import check_data, check_schedule, replace_recipe, resolve_runs, write_request
from distrain.launchers.slurm.code_snapshot import take_snapshot
from distrain.launchers.slurm.scripts import find_script
from distrain.launchers.slurm.srun import check_started_once
from distrain.runs import query, slurm
from distrain.runs.directory import RunDirectory
from distrain.runs.liveness import is_queued
from distrain.runs.objects import write_objects
from distrain.runs.pause import Pause, write_pause
from distrain.runs.status import Job

_PYTHON = "--python="  # argument of a batch script, before the path of the Python to run
_OPTION = re.compile(r"[a-z][a-z0-9-]*(=.*)?", re.DOTALL)


@dataclass(frozen=True)
class SbatchOptions:
    """Options for the launcher in the job, and for sbatch under their own names.

    `extras` are further options of sbatch, KEY=VALUE or KEY.
    """

    options: LaunchOptions
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    dependency: str | None = None
    requeue: bool = True
    extras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Submission:
    """The runs of one call of sbatch: one, or the tasks of an array; `notes` are messages on their data."""

    runs: tuple[RunDirectory, ...]
    recipes: tuple[Recipe, ...]
    profile: Profile
    plan: Plan
    notes: tuple[str, ...]


def resolve(
    *,
    references: list[str],
    tasks: list[str],
    overrides: list[str],
    data: str | None,
    run: Path | None,
    sbatch: SbatchOptions,
) -> Submission:
    """Resolve and check the request, and plan the call of sbatch; writes nothing.

    Each recipe, with each of `tasks` as another `A.B=C`, is a run; several runs make an array. Raises a `UserError`.
    """
    check_started_once(os.environ, command="submit")
    found = resolve_runs(references, tasks, overrides, data, run)
    runs, recipes = tuple(run for run, _ in found), tuple(recipe for _, recipe in found)
    profile = _profile(sbatch.options, recipes)
    notes: dict[str, None] = {}  # each once
    for directory, recipe in found:
        solve_batching(
            recipe.data.batch_size, recipe.train.micro_batch_size, profile.world_size, is_exact=recipe.train.exact
        )
        notes |= dict.fromkeys(check_data(recipe))
        if not directory.exists or is_extended(directory, recipe):
            check_schedule(recipe)
        elif directory.read_status().state == "finished":
            name = directory.path.name
            raise RunError(f"run {name} has already finished; {query.describe_continuations(directory)}")
        check_is_idle(directory)
        if is_queued(directory):
            name = directory.path.name
            raise RunError(f"run {name} is in the queue of this machine; `distrain cancel {name}` takes it out first")
    return Submission(runs, recipes, profile, _plan(sbatch, runs, recipes, profile), tuple(notes))


def submit(
    submission: Submission,
    *,
    is_snapshot: bool,
    extras: list[Path],
    objects: Mapping[str, bytes] = MappingProxyType({}),
    code: Path | None = None,
    pause: Pause | None = None,
) -> str:
    """Create the run directories, with `objects`, and submit them; they are deleted where SLURM refuses the job.

    Returns the id of the job. The code is a copy of that in this folder where `is_snapshot`, else a copy of the folder
    `code`, if given. The runs pause at `pause`.
    """
    with ExitStack() as created:
        for run, recipe in zip(submission.runs, submission.recipes, strict=True):
            created.enter_context(run.created())
            if is_snapshot:
                take_snapshot(submission.plan.cwd, run.code, extras=extras)
            else:
                shutil.rmtree(run.code, ignore_errors=True)
                if code is not None:
                    shutil.copytree(code, run.code, symlinks=True)
            write_objects(run, objects)
            write_request(run, recipe, submission.profile, submission.plan)
            write_pause(run, pause)
        return _call(submission.plan, submission.runs)


def submit_again(run: RunDirectory, recipe: Recipe | None = None, *, pause: Pause | None = None) -> str:
    """Submit a run as it was submitted before, extended by a `recipe` if one is given; returns the job's id.

    It trains up to `pause`.
    """
    check_started_once(os.environ, command="resume")
    check_is_idle(run)
    job = run.read_job()
    if job is None or not job.argv:
        raise RunError(
            f"run {run.path.name} was not created by `distrain submit`; use `distrain submit --run {run.path}`"
        )
    options = list(itertools.takewhile(lambda word: word.startswith("--"), job.argv[1:]))  # the script comes after them
    argv = [job.argv[0], *(word for word in options if not word.startswith(("--array=", "--output=")))]
    python = next((word for word in job.argv[1 + len(options) :] if word.startswith(_PYTHON)), None)
    argv += [_output((run,)), *_script("train.sbatch", python=python), str(run.path)]
    if recipe is not None:
        with run.hold_launcher_lock():
            replace_recipe(run, recipe)
    write_pause(run, pause)
    return _call(Plan(tuple(argv), cwd=Path(job.cwd)), (run,))


def check_is_idle(run: RunDirectory) -> None:
    """Raise `RunError` where a job of the run is pending, running, or being requeued."""
    job = run.read_job()
    if job is None or (info := slurm.read_jobs([job.id]).get(job.id)) is None or info.is_over:
        return
    release = f"`scontrol release {job.id}` lets it continue, and " if info.is_held else ""
    raise RunError(
        f"job {job.id} of run {run.path.name} is {info.state.lower()}; {release}`distrain stop {run.path}` ends it"
    )


def _profile(options: LaunchOptions, recipes: tuple[Recipe, ...]) -> Profile:
    """Return the requested profile; the job replaces it by its allocation, maybe with another number of threads.

    Where no device is requested, none is stored: options of sbatch may request GPUs in other ways.
    """
    if not str(options.nodes or 1).isdecimal() or options.nodes == 0:
        raise LaunchError(f"--nodes {options.nodes} is not a number of nodes for SLURM; give 1 or more")
    return Profile(
        launcher="slurm",
        device=options.device or (None if options.processes is None else "cuda"),
        nodes=int(options.nodes or 1),
        processes=options.processes or 1,
        threads=recipes[0].train.threads or 1,
        **options.fault_tolerance,
    )


def _plan(sbatch: SbatchOptions, runs: tuple[RunDirectory, ...], recipes: tuple[Recipe, ...], profile: Profile) -> Plan:
    workers = max(recipe.data.num_workers for recipe in recipes)
    options: dict[str, object] = {
        "job-name": recipes[0].name,
        "nodes": profile.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": profile.processes if profile.device == "cuda" else None,
        "cpus-per-task": profile.processes * (1 + workers),
        "time": sbatch.time,
        "partition": sbatch.partition,
        "account": sbatch.account,
        "qos": sbatch.qos,
        "constraint": sbatch.constraint,
        "dependency": sbatch.dependency,
        "array": f"0-{len(runs) - 1}" if len(runs) > 1 else None,
    }
    argv = ["sbatch", "--parsable", *(f"--{key}={value}" for key, value in options.items() if value is not None)]
    argv += ["--requeue" if sbatch.requeue else "--no-requeue", "--export=ALL"]
    for extra in sbatch.extras:
        if not _OPTION.fullmatch(extra):
            raise LaunchError(f"--sbatch {extra} is not KEY=VALUE, such as mem=64G, or only KEY")
        argv.append(f"--{extra}")
    script = _script("train.sbatch" if len(runs) == 1 else "sweep.sbatch")
    return Plan((*argv, _output(runs), *script, *(str(run.path) for run in runs)), cwd=Path.cwd())


def _script(name: str, *, python: str | None = None) -> tuple[str, str]:
    """Return a batch script and its Python, as an argument because --export=NONE would remove a variable."""
    return str(find_script(name)), python or f"{_PYTHON}{sys.executable}"


def _output(runs: tuple[RunDirectory, ...]) -> str:
    """Return the option that makes SLURM write the job's output into the run directory, or beside those of an array.

    SLURM expands percent signs in it.
    """
    if len(runs) > 1:
        return f"--output={_without_percent(runs[0].path.parent)}/slurm-%A_%a.out"
    return f"--output={_without_percent(runs[0].logs)}/slurm-%j.out"


def _without_percent(path: Path) -> str:
    return str(path).replace("%", "%%")


def _call(plan: Plan, runs: tuple[RunDirectory, ...]) -> str:
    """Call sbatch, and save the job of each run."""
    job_id = slurm.submit(list(plan.argv), cwd=str(plan.cwd), env=plan.env)
    for number, run in enumerate(runs):
        task_id = job_id if len(runs) == 1 else f"{job_id}_{number}"
        run.write_job(Job(id=task_id, argv=list(plan.argv), env=dict(plan.env), cwd=str(plan.cwd)))
        status = run.read_status()
        if status.state != "queued" and not run.is_held:  # the job may have started already
            status.state = "queued"
            run.write_status(status)
    return job_id
