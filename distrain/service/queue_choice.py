"""Chooses the queue of a job: that of this machine, or SLURM's."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from distrain.config.profile import LaunchOptions
from distrain.errors import LaunchError
from distrain.messages import joined
from distrain.runs.directory import RunDirectory


def choose_queue(
    queue: str | None,
    options: LaunchOptions,
    *,
    run: Path | None,
    of_slurm: Mapping[str, object],
    of_local: Mapping[str, object],
) -> tuple[bool, str]:
    """Return whether a job goes into the queue of this machine, not into SLURM's, and why.

    `of_slurm` and `of_local` are the values of the options for only one of them, None where they are not given.
    Raises `LaunchError` where those contradict the queue.
    """
    if queue not in {None, "local", "slurm"}:
        raise LaunchError(f"--queue {queue} is neither local nor slurm")
    own = [name for name, value in of_local.items() if value is not None]
    if queue is not None:
        local, why = queue == "local", f"--queue {queue}"
    elif run is not None and RunDirectory(run).read_local_job() is not None:
        local, why = True, "the run was in it before"
    elif own:
        local, why = True, f"{own[0]} is an option of it"
    elif options.launcher is not None:
        local, why = options.launcher != "slurm", f"the launch profile has launcher {options.launcher}"
    elif shutil.which("sbatch") is None:
        local, why = True, "there is no sbatch here"
    else:
        local, why = False, "there is sbatch here"
    if foreign := [name for name, value in (of_slurm if local else of_local).items() if value is not None]:
        place, other = ("the queue of this machine", "slurm") if local else ("SLURM", "local")
        does = "does" if len(foreign) == 1 else "do"
        raise LaunchError(f"{joined(foreign, last='and')} {does} not go with {place} ({why}); use --queue {other}")
    return local, why
