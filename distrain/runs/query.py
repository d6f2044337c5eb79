"""Finds runs and reads them for the control plane, and asks one to stop."""

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distrain.config.profile import read_profile
from distrain.errors import RunError
from distrain.messages import joined
from distrain.runs import checkpoints, slurm
from distrain.runs.directory import BUNDLE, RunDirectory
from distrain.runs.liveness import is_alive, read_states
from distrain.runs.status import State, Status
from distrain.system import filesystem

_ENDINGS: dict[State, str] = {
    "stopped": "was stopped",
    "failed": "failed",
    "queued": "never started",
    "preempted": "was preempted",
}
_FOLLOW_S = 0.5


def find_runs(root: Path) -> list[RunDirectory]:
    """Return the runs directly below `root`, the oldest first."""
    if not root.is_dir():
        return []
    runs = [RunDirectory(path) for path in root.iterdir() if path.is_dir()]
    return sorted(filter(_is_run, runs), key=_began)


def find_run(reference: str, root: Path, *, excluding: RunDirectory | None = None) -> RunDirectory:
    """Find a run by its path, its name below `root`, or the beginning of its name; `last` is the newest.

    One to be left out, `excluding`, is not found by the beginning of its name or as the newest. Raises `RunError` where
    none or several match, and for a run of a newer format.
    """
    run = _find_run(reference, root, excluding)
    run.check_format()
    return run


def _find_run(reference: str, root: Path, excluding: RunDirectory | None) -> RunDirectory:
    for path in (Path(reference).expanduser(), root / reference):
        if (run := RunDirectory(path if path.name not in {"", ".."} else path.resolve())).exists:  # `.` has no name
            return run
    left_out = None if excluding is None else excluding.path.absolute()
    runs = [run for run in find_runs(root) if run.path.absolute() != left_out]
    if reference == "last" and runs:
        return runs[-1]
    matches = [run for run in runs if run.path.name.startswith(reference)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RunError(f"{len(matches)} runs begin with {reference!r}: {', '.join(run.path.name for run in matches)}")
    _refuse_other(Path(reference).expanduser())
    raise RunError(f"there is no run {reference!r} here or in {root}; `distrain runs` lists them")


def _refuse_other(path: Path) -> None:
    """Raise `RunError` where a path that was given for a run is something else, with what can be done with that."""
    shown = shlex.quote(str(path))
    if (path / BUNDLE).is_file():
        raise RunError(
            f"{path} is a bundle, not a run: `distrain predict {shown} IMAGE...` uses it, --set model.weights={shown} "
            f"trains from its weights, and `distrain eval` takes the run that it was exported from"
        )
    if path.is_file():
        raise RunError(f"{path} is a file, not a run; name the folder of a run, which `distrain runs` lists")


def find_checkpoint(
    reference: str,
    root: Path,
    *,
    must_be_best: bool,
    which: str | None = None,
    excluding: RunDirectory | None = None,
) -> tuple[RunDirectory, Path, str]:
    """Find a checkpoint to use by its own path, or by its run as `find_run` does; nothing in it is verified.

    Of a run it is `which`, a step, `best` or `last`, if that is given, else the best by evaluation. Where that was not
    kept, and unless it `must_be_best`, it is the strongest of those that are, or the newest where none of them was
    evaluated. `excluding` is as in `find_run`. Returns the run, the checkpoint's folder, and in a few words why it is
    this one. Raises `RunError` where there is none.
    """
    if must_be_best and which is not None:
        raise RunError(f"{which} and --best both choose the checkpoint; leave one out")
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
                f"{reference} is one checkpoint, and {which or '--best'} chooses among those of a run; leave one out"
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
        better = "" if step is None else f"; that of step {step} has no checkpoint"
        return run, entry.path, f"the strongest by evaluation of those kept{better}"
    return run, checkpoints.choose(run.checkpoints, "last"), "the newest; none was evaluated"


def best_checkpoint(run: RunDirectory, status: Status) -> Path | None:
    """Return the checkpoint of the best evaluation; None where it is not kept, or there was no such evaluation."""
    if status.best is None:
        return None
    path = checkpoints.final_path(run.checkpoints, int(status.best["step"]))
    return path if path.is_dir() else None


def describe_unsaved(run: RunDirectory) -> str | None:
    """Return a sentence on what a run's checkpoints lack of what its training used; None where they have it all."""
    names = run.read_status().unsaved_state
    if not names:
        return None
    listed = joined(names, last="and")
    return f"no checkpoint holds {listed}, so this network is not exactly the one that the training evaluated"


def find_fault(run: RunDirectory) -> str | None:
    """Return in a sentence why it cannot be read where a run stands; None where it can."""
    try:
        run.check_format()
        run.read_status()
        run.read_job()
    except RunError as error:
        return str(error)
    except OSError as error:
        return filesystem.explain(error) or str(error)
    return None


def _is_run(run: RunDirectory) -> bool:
    try:
        return run.exists
    except PermissionError:  # another user's closed folder may be one
        return True


def _began(run: RunDirectory) -> float:
    try:
        return run.recipe.stat().st_ctime
    except OSError:
        return run.path.stat().st_ctime


def request_stop(run: RunDirectory) -> str | None:
    """Ask a run to stop, which it does at its next step; a job that does not train yet is cancelled.

    Returns the job's id if it was cancelled; raises `RunError` where nothing trains in the run, nor will.
    """
    job = None if is_alive(run) else run.read_job()
    if job is not None and (facts := slurm.read_jobs([job.id]).get(job.id)) and not facts.is_over:
        run.check_writable(otherwise="ask its owner to stop it")
        slurm.cancel(job.id)
        status = run.read_status()
        status.close("stopped")
        run.write_status(status)
        return job.id
    check_alive(run)
    run.check_writable(otherwise="ask its owner to stop it")
    run.stop.touch()
    return None


def check_alive(run: RunDirectory) -> None:
    """Raise `RunError` where nothing trains in the run, with how it ended."""
    if not is_alive(run):
        raise RunError(describe_end(run))


def describe_end(run: RunDirectory) -> str:
    """Return in a sentence how a run that nobody trains in any more has ended, and how it is resumed."""
    status = run.read_status()
    state = "finished" if status.state == "finished" else f"not running (it {_ENDINGS.get(status.state, 'died')})"
    advice = "" if status.state == "finished" else f"; `{resume_command(run)}` resumes it"
    return f"run {run.path.name} is {state} at step {status.step} of {status.total_steps}{advice}"


def resume_command(run: RunDirectory) -> str:
    """Return the command that resumes a run as it was launched: as many processes, here or on the cluster.

    Each of several machines has its own; this one is that of `run.node_rank`.
    """
    path = shlex.quote(str(run.path))
    profile = read_profile(run.profile) if run.profile.exists() else None
    if profile is None or profile.nodes == 1 or profile.launcher == "slurm":
        return f"distrain resume {path}"
    wanted = profile.as_options()
    processes = f"--gpus {wanted.processes}" if profile.device == "cuda" else f"--procs {wanted.processes}"
    launcher = "" if profile.launcher == "torchrun" else f" --launcher {profile.launcher}"
    if profile.accelerate_config is not None:
        launcher += f" --accelerate-config {shlex.quote(profile.accelerate_config)}"
    return (
        f"distrain fit --run {path} --nodes {wanted.nodes} --node-rank {run.node_rank} "
        f"--rendezvous {wanted.rendezvous} {processes}{launcher}"
    )


def facts(run: RunDirectory) -> dict[str, Any]:
    """Return where a run stands as JSON holds it, for scripts; of one that cannot be read, the `fault`."""
    if (fault := find_fault(run)) is not None:
        return {"run": str(run.path), "state": "unreadable", "fault": fault}
    status = run.read_status()
    best = best_checkpoint(run, status)
    state = read_states([run])[run.path]
    more = {"state": state, "best_checkpoint": None if best is None else str(best)}
    if state != "running":  # what a run that died has promised
        more["eta_s"] = None
    return {"run": str(run.path), **status.model_dump(), **more}


def read_log(run: RunDirectory, rank: int, *, follow: bool) -> Iterator[str]:
    """Return the log of a rank, piece by piece; with `follow` until nothing trains in the run nor will by itself.

    Raises `RunError` where the rank has no log, and is not waited for.
    """
    path, position = run.log(rank), 0
    if not path.exists() and not follow:
        names = ", ".join(sorted(file.name for file in run.logs.glob("*"))) or "none"
        raise RunError(f"run {run.path.name} has no log of rank {rank}; the logs in {run.logs} are: {names}")
    while True:
        goes_on = follow and _goes_on(run)  # asked before reading: what is written last is read as well
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(position)
                yield file.read()
                position = file.tell()
        if not goes_on:
            return
        time.sleep(_FOLLOW_S)


def _goes_on(run: RunDirectory) -> bool:
    if is_alive(run):
        return True
    job = run.read_job()
    facts = slurm.read_jobs([job.id]).get(job.id) if job is not None else None
    return facts is not None and not facts.is_over
