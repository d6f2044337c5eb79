"""Finds and reads runs for the control plane, and requests a run to stop."""

import os
import shlex
import stat
import time
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from distrain.config.profile import Profile, read_profile
from distrain.errors import RunError
from distrain.messages import counted, joined
from distrain.runs import checkpoints, slurm, stop_file
from distrain.runs.directory import BUNDLE, RECIPE, SERVE_FOLDER, RunDirectory
from distrain.runs.liveness import is_alive, is_queued
from distrain.runs.status import State, Status
from distrain.system import filesystem

_ENDINGS: dict[State, str] = {
    "stopped": "was stopped",
    "failed": "failed",
    "queued": "never started",
    "preempted": "was preempted",
    "cancelled": "was cancelled",
}
_FOLLOW_S = 0.5


class NoSuchRunError(RunError):
    """No run has the name or path."""


def find_runs(root: Path) -> list[RunDirectory]:
    """Return the runs directly below `root`, the oldest first."""
    return [RunDirectory(root / name) for name in find_start_times(root)]


def find_start_times(root: Path) -> dict[str, float]:
    """Return when the recipes of the runs below `root` were written, in seconds since the epoch, by name in order."""
    if not root.is_dir():
        return {}
    with os.scandir(root) as entries:  # quicker than paths, which matters for thousands of runs
        times = {entry.name: time for entry in entries if entry.is_dir() and (time := _start_time(entry)) is not None}
    return dict(sorted(times.items(), key=itemgetter(1)))


def find_run(reference: str, root: Path, *, excluding: RunDirectory | None = None) -> RunDirectory:
    """Find a run by its path, its name below `root`, or the beginning of its name; `last` is the newest.

    The run `excluding` is not found by the beginning of its name or as the newest. Raises `RunError` where no run or
    several runs match, and for a run of a newer format.
    """
    run = _find_run(reference, root, excluding)
    run.check_format()
    return run


def _find_run(reference: str, root: Path, excluding: RunDirectory | None) -> RunDirectory:
    if not reference:
        raise RunError("the name of the run is empty; `distrain runs` lists them")
    for path in (Path(reference).expanduser(), root / reference):
        if (run := RunDirectory(path if path.name not in {"", ".."} else path.resolve())).exists:  # `.` has no name
            return run
    excluded = None if excluding is None else excluding.path.absolute()
    runs = [run for run in find_runs(root) if run.path.absolute() != excluded]
    if reference == "last" and runs:
        return runs[-1]
    matches = [run for run in runs if run.path.name.startswith(reference)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RunError(
            f"{counted(len(matches), 'run')} begin with {reference!r}: {', '.join(run.path.name for run in matches)}"
        )
    _refuse_other(Path(reference).expanduser())
    raise NoSuchRunError(f"there is no run {reference!r} here or in {root}; `distrain runs` lists them")


def _refuse_other(path: Path) -> None:
    """Raise `RunError` where a path given as a run is something else, and say what it can be used for."""
    shown = shlex.quote(str(path))
    if (path / BUNDLE).is_file():
        raise RunError(
            f"{path} is a bundle, not a run: `distrain predict {shown} IMAGE...` uses it, --set model.weights={shown} "
            f"trains from its weights, and `distrain eval` needs the run that it was exported from"
        )
    if path.is_file():
        raise NoSuchRunError(f"{path} is a file, not a run; name the folder of a run, which `distrain runs` lists")


def find_checkpoint(
    reference: str,
    root: Path,
    *,
    must_be_best: bool,
    which: str | None = None,
    excluding: RunDirectory | None = None,
) -> tuple[RunDirectory, Path, str]:
    """Find a checkpoint by its path, or in a run that `find_run` finds; its content is not verified.

    In a run, `which` chooses it: a step, `best` or `last`; the default is the best by evaluation. If that was not kept,
    and unless `must_be_best`, the one with the highest score among those kept is chosen, or the newest where none was
    evaluated. `excluding` is as in `find_run`. Returns the run, the checkpoint's folder, and the reason for the choice
    as text. Raises `RunError` where there is none.
    """
    if must_be_best and which is not None:
        raise RunError(f"{which} and --best both choose the checkpoint; remove one")
    for path in (Path(reference).expanduser().absolute(), (root / reference).absolute()):
        run = RunDirectory(path.parents[1]) if len(path.parts) > 2 else RunDirectory(path)
        if not run.exists or path.parent != run.checkpoints:
            continue
        run.check_format()
        number = path.name.removeprefix("step-")
        named = checkpoints.final_path(run.checkpoints, int(number)) if number.isdecimal() else path
        if named not in checkpoints.committed(run.checkpoints):
            raise RunError(f"there is no checkpoint {reference}; `distrain checkpoints list {run.path}` lists them")
        if must_be_best or which is not None:
            raise RunError(
                f"{reference} is a checkpoint, and {which or '--best'} chooses among those of a run; remove one"
            )
        return run, named, "as named"
    run = find_run(reference, root, excluding=excluding)
    if which is not None:
        return run, checkpoints.choose(run.checkpoints, which), "as named"
    entries = checkpoints.read_catalog(run.checkpoints)
    if must_be_best or checkpoints.find_best(entries) is not None:
        return run, checkpoints.choose(run.checkpoints, "best"), "the best by evaluation"
    if (entry := checkpoints.strongest(entries)) is not None:
        step = checkpoints.run_best_step(entries)
        better = "" if step is None else f"; the best of the run, at step {step}, was not kept"
        return run, entry.path, f"the best by evaluation of those kept{better}"
    was_evaluated = any(entry.evaluation for entry in entries)
    why = "the newest; no evaluation was finite" if was_evaluated else "the newest; none was evaluated"
    return run, checkpoints.choose(run.checkpoints, "last"), why


def best_checkpoint(run: RunDirectory, status: Status) -> Path | None:
    """Return the checkpoint of the best evaluation; None where it was not kept, or there was no evaluation."""
    if status.best is None:
        return None
    path = checkpoints.final_path(run.checkpoints, int(status.best["step"]))
    return path if path.is_dir() else None


def describe_unsaved(run: RunDirectory) -> str | None:
    """Return a sentence on the state of the training that is missing in its checkpoints; None where it is complete."""
    names = run.read_status().unsaved_state
    if not names:
        return None
    listed = joined(names, last="and")
    return f"no checkpoint holds {listed}, so this network is not exactly the one that the training evaluated"


def find_fault(run: RunDirectory) -> str | None:
    """Return in a sentence why the status of a run cannot be read; None where it can."""
    try:
        run.check_format()
        run.read_status()
        run.read_job()
        run.read_local_job()
    except RunError as error:
        return str(error)
    except OSError as error:
        return filesystem.explain(error) or str(error)
    return None


def _start_time(folder: "os.DirEntry[str]") -> float | None:
    """Return when the recipe in a folder was written, in seconds since the epoch; None where it has none."""
    try:
        recipe = os.stat(f"{folder.path}/{RECIPE}")  # noqa: PTH116 - three times as fast
    except PermissionError:  # a folder of another user may be a run
        return None if folder.name == SERVE_FOLDER else folder.stat().st_ctime
    except OSError:
        return None
    return recipe.st_ctime if stat.S_ISREG(recipe.st_mode) else None


def request_stop(run: RunDirectory) -> str | None:
    """Request a run to stop, which it does at its next step; a job that does not train yet is cancelled.

    Returns the job's id if it was cancelled; raises `RunError` where no process trains in the run or will.
    """
    job = None if is_alive(run) else run.read_job()
    if job is not None and (info := slurm.read_jobs([job.id]).get(job.id)) and not info.is_over:
        run.check_writable(otherwise="ask its owner to stop it")
        slurm.cancel(job.id)
        status = run.read_status()
        status.close("stopped")
        run.write_status(status)
        return job.id
    check_alive(run)
    run.check_writable(otherwise="ask its owner to stop it")
    stop_file.request_stop(run, "stopped")
    return None


def check_alive(run: RunDirectory) -> None:
    """Raise `RunError` where no process trains in the run; the message says how the run ended."""
    if not is_alive(run):
        raise RunError(describe_end(run))


def describe_end(run: RunDirectory) -> str:
    """Return a sentence on how a run that is not alive has ended, and how to resume it."""
    status, name = run.read_status(), run.path.name
    place = f" at step {status.step} of {status.total_steps}" if status.total_steps else ""
    if status.state == "finished":
        return f"run {name} finished{place}"
    ending = _ENDINGS.get(status.state, "died")
    return f"run {name} is not running: it {ending}{place}; `{resume_command(run)}` resumes it"


def warm_start_command(run: RunDirectory, overrides: Sequence[str]) -> str:
    """Return the command that starts another run of the same recipe, with `overrides`, from the weights of a run."""
    recipe, weights = shlex.quote(str(run.recipe)), shlex.quote(f"model.weights={run.path}")
    changes = "".join(f" --set {shlex.quote(override)}" for override in overrides)
    return f"distrain fit {recipe} --set {weights}{changes}"


def describe_continuations(run: RunDirectory) -> str:
    """Return how a finished run is trained further, and how another run starts from its weights."""
    command = warm_start_command(run, ["train.epochs=N"])
    extend = f"distrain resume {shlex.quote(str(run.path))} --set train.epochs=N"
    return f"`{extend}` trains it further, and `{command}` starts another run from its weights"


def resume_command(run: RunDirectory) -> str:
    """Return the command that resumes a run as it was launched: with the same processes, here or on the cluster.

    With several nodes, each needs its own command; this one is for the node `run.node_rank`.
    """
    path = shlex.quote(str(run.path))
    profile = read_profile(run.profile) if run.profile.exists() else None
    if profile is None or profile.nodes == 1 or profile.launcher == "slurm":
        return f"distrain resume {path}"
    options = profile.as_options()
    processes = f"--gpus {options.processes}" if profile.device == "cuda" else f"--procs {options.processes}"
    launcher = "" if profile.launcher == "torchrun" else f" --launcher {profile.launcher}"
    if profile.accelerate_config is not None:
        launcher += f" --accelerate-config {shlex.quote(profile.accelerate_config)}"
    return (
        f"distrain fit --run {path} --nodes {options.nodes} --node-rank {run.node_rank} "
        f"--rendezvous {options.rendezvous} {processes}{launcher}"
    )


def repeat_command(profile: Profile, file: str) -> str:
    """Return the command that trains the recipe in `file` as a run with this profile, in a new run directory."""
    count = profile.as_options().processes
    processes = f"--gpus {count}" if profile.device == "cuda" else f"--device cpu --procs {count}"
    nodes = f"--nodes {profile.as_options().nodes} " if profile.nodes > 1 else ""
    if profile.launcher == "slurm":
        return f"distrain submit {shlex.quote(file)} {nodes}{processes}"
    rendezvous = f"--rendezvous {profile.rendezvous} --node-rank {profile.node_rank} " if profile.nodes > 1 else ""
    return f"distrain fit {shlex.quote(file)} {nodes}{rendezvous}{processes}"


def read_log(run: RunDirectory, rank: int, *, follow: bool) -> Iterator[str]:
    """Yield the log of a rank in parts; with `follow`, until the run has ended and is not in SLURM's queue.

    Raises `RunError` where the rank has no log, unless `follow` waits for it.
    """
    path, position = run.log(rank), 0
    if not path.exists() and not follow:
        names = ", ".join(sorted(file.name for file in run.logs.glob("*"))) or "none"
        if is_queued(run):
            raise RunError(f"run {run.path.name} is in the queue and has no log yet; `logs -f` waits for it")
        raise RunError(f"run {run.path.name} has no log of rank {rank}; the logs in {run.logs} are: {names}")
    while True:
        has_more = follow and will_continue(run)  # checked before reading, so that the last lines are read as well
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(position)
                yield file.read()
                position = file.tell()
        if not has_more:
            return
        time.sleep(_FOLLOW_S)


def will_continue(run: RunDirectory) -> bool:
    """Whether a run is alive, or waits in a queue."""
    if is_alive(run) or is_queued(run):
        return True
    job = run.read_job()
    info = slurm.read_jobs([job.id]).get(job.id) if job is not None else None
    return info is not None and not info.is_over
