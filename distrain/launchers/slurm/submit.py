"""Submits runs to SLURM: from what is requested to a job that waits in the queue."""

import itertools
import os
import re
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from distrain.config import Recipe
from distrain.config.batching import solve_batching
from distrain.config.debug_presets import DebugOptions
from distrain.config.profile import LaunchOptions, Profile
from distrain.errors import LaunchError, RunError
from distrain.launchers.plan import Plan
from distrain.launchers.prepare import check_data, check_schedule, resolve_run, write_request
from distrain.launchers.slurm.code_snapshot import take_snapshot
from distrain.launchers.slurm.scripts import find_script
from distrain.launchers.slurm.srun import check_started_once
from distrain.runs import slurm
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Job

_PYTHON = "--python="  # before the Python that a batch script runs
_OPTION = re.compile(r"[a-z][a-z0-9-]*(=.*)?", re.DOTALL)


@dataclass(frozen=True)
class SbatchOptions:
    """What is asked of the launcher in the job, and of SLURM in sbatch's own words.

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
    """Runs that one call of sbatch submits: one, or the tasks of an array; `notes` tell of their data."""

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
    order: SbatchOptions,
) -> Submission:
    """Resolve and check what is asked for, and plan the call of sbatch; makes nothing.

    Each recipe, with each of `tasks` as one more `A.B=C`, is a run: several make an array. Raises a `UserError`.
    """
    check_started_once(os.environ, command="submit")
    recipes_asked: list[str | None] = [*references] or [None]
    pairs = [(reference, [*overrides, *more]) for reference in recipes_asked for more in _each(tasks)]
    if run is not None and len(pairs) > 1:
        folders: list[Path | None] = [run / str(number) for number in range(len(pairs))]
    else:
        folders = [run] * len(pairs)
    found = [
        resolve_run(reference, changes, data, folder, DebugOptions())[:2]
        for (reference, changes), folder in zip(pairs, folders, strict=True)
    ]
    runs, recipes = tuple(run for run, _ in found), tuple(recipe for _, recipe in found)
    profile = _profile(order.options, recipes)
    notes: dict[str, None] = {}  # each once
    for directory, recipe in found:
        solve_batching(
            recipe.data.batch_size, recipe.train.micro_batch_size, profile.world_size, is_exact=recipe.train.exact
        )
        notes |= dict.fromkeys(check_data(recipe))
        if not directory.exists:
            check_schedule(recipe)
        check_is_idle(directory)
    return Submission(runs, recipes, profile, _plan(order, runs, recipes, profile), tuple(notes))


def submit(submission: Submission, *, is_snapshot: bool, extras: list[Path]) -> str:
    """Make the run directories and submit them; returns the job's id. What SLURM refuses leaves nothing behind."""
    with ExitStack() as made:
        for run, recipe in zip(submission.runs, submission.recipes, strict=True):
            made.enter_context(run.created())
            if is_snapshot:
                take_snapshot(submission.plan.cwd, run.code, extras=extras)
            else:
                shutil.rmtree(run.code, ignore_errors=True)
            write_request(run, recipe, submission.profile, submission.plan)
        return _call(submission.plan, submission.runs)


def submit_again(run: RunDirectory) -> str:
    """Submit a run in the way in which it was submitted before; returns the job's id."""
    check_started_once(os.environ, command="resume")
    check_is_idle(run)
    job = run.read_job()
    if job is None or not job.argv:
        raise RunError(
            f"run {run.path.name} was not made by `distrain submit`; take `distrain submit --run {run.path}`"
        )
    options = list(itertools.takewhile(lambda word: word.startswith("--"), job.argv[1:]))  # the script comes after them
    argv = [job.argv[0], *(word for word in options if not word.startswith(("--array=", "--output=")))]
    python = next((word for word in job.argv[1 + len(options) :] if word.startswith(_PYTHON)), None)
    argv += [_output((run,)), *_script("train.sbatch", python=python), str(run.path)]
    return _call(Plan(tuple(argv), cwd=Path(job.cwd)), (run,))


def check_is_idle(run: RunDirectory) -> None:
    """Raise `RunError` where a job of the run waits, runs, or is about to go on."""
    job = run.read_job()
    if job is None or (facts := slurm.read_jobs([job.id]).get(job.id)) is None or facts.is_over:
        return
    released = f"`scontrol release {job.id}` lets it go on, and " if facts.is_held else ""
    raise RunError(
        f"job {job.id} of run {run.path.name} is {facts.state.lower()}; {released}`distrain stop {run.path}` ends it"
    )


def _each(tasks: list[str]) -> list[list[str]]:
    return [[task] for task in tasks] or [[]]


def _profile(options: LaunchOptions, recipes: tuple[Recipe, ...]) -> Profile:
    """Return what is asked for; the job writes down what it was given, which may have other threads.

    Where no device is asked for, none is stored: options of sbatch may ask for GPUs in ways of their own.
    """
    if not str(options.nodes or 1).isdecimal() or options.nodes == 0:
        raise LaunchError(f"--nodes {options.nodes} is not a number of machines for SLURM; give 1 or more")
    return Profile(
        launcher="slurm",
        device=options.device or (None if options.processes is None else "cuda"),
        nodes=int(options.nodes or 1),
        processes=options.processes or 1,
        threads=recipes[0].train.threads or 1,
        **options.fault_tolerance,
    )


def _plan(order: SbatchOptions, runs: tuple[RunDirectory, ...], recipes: tuple[Recipe, ...], profile: Profile) -> Plan:
    workers = max(recipe.data.num_workers for recipe in recipes)
    options: dict[str, object] = {
        "job-name": recipes[0].name,
        "nodes": profile.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": profile.processes if profile.device == "cuda" else None,
        "cpus-per-task": profile.processes * (1 + workers),
        "time": order.time,
        "partition": order.partition,
        "account": order.account,
        "qos": order.qos,
        "constraint": order.constraint,
        "dependency": order.dependency,
        "array": f"0-{len(runs) - 1}" if len(runs) > 1 else None,
    }
    argv = ["sbatch", "--parsable", *(f"--{key}={value}" for key, value in options.items() if value is not None)]
    argv += ["--requeue" if order.requeue else "--no-requeue", "--export=ALL"]
    for extra in order.extras:
        if not _OPTION.fullmatch(extra):
            raise LaunchError(f"--sbatch {extra} is not KEY=VALUE, such as mem=64G, or KEY alone")
        argv.append(f"--{extra}")
    script = _script("train.sbatch" if len(runs) == 1 else "sweep.sbatch")
    return Plan((*argv, _output(runs), *script, *(str(run.path) for run in runs)), cwd=Path.cwd())


def _script(name: str, *, python: str | None = None) -> tuple[str, str]:
    """Return a batch script and the Python for it: an argument, since --export=NONE would take away a variable."""
    return str(find_script(name)), python or f"{_PYTHON}{sys.executable}"


def _output(runs: tuple[RunDirectory, ...]) -> str:
    """Return the option that has SLURM write what the job says into the run directory; an array has none of its own.

    SLURM replaces what follows a percent sign in it.
    """
    if len(runs) > 1:
        return f"--output={_without_percent(runs[0].path.parent)}/slurm-%A_%a.out"
    return f"--output={_without_percent(runs[0].logs)}/slurm-%j.out"


def _without_percent(path: Path) -> str:
    return str(path).replace("%", "%%")


def _call(plan: Plan, runs: tuple[RunDirectory, ...]) -> str:
    """Call sbatch, and write down which job is whose."""
    job_id = slurm.submit(list(plan.argv), cwd=str(plan.cwd), env=plan.env)
    for number, run in enumerate(runs):
        own_id = job_id if len(runs) == 1 else f"{job_id}_{number}"
        run.write_job(Job(id=own_id, argv=list(plan.argv), env=dict(plan.env), cwd=str(plan.cwd)))
        status = run.read_status()
        if status.state != "queued" and not run.is_held:  # a job may have begun by now
            status.state = "queued"
            run.write_status(status)
    return job_id
