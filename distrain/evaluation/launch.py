"""Checks, launches and reads back an examination, in the control plane."""

from collections.abc import Callable

from distrain.config import Recipe
from distrain.config.profile import LaunchOptions, resolve_profile
from distrain.errors import RunError
from distrain.evaluation.results import Findings, read_findings
from distrain.launchers import LAUNCHERS
from distrain.launchers.launch_task import launch_task
from distrain.launchers.prepare import check_data
from distrain.launchers.supervisor import RunWorker
from distrain.runs.directory import RunDirectory
from distrain.runs.task import EvaluationRequest


def examine(
    folder: RunDirectory,
    recipe: Recipe,
    request: EvaluationRequest,
    wanted: LaunchOptions,
    *,
    run_worker: RunWorker,
    notify: Callable[[str], None],
) -> Findings:
    """Have the request done on as many processes as wanted and return what was found; one process is this one.

    Raises a `UserError` for what is wrong with the question, `TaskError` with the first failure of a process, and
    `StoppedError` after a stop.
    """
    profile = resolve_profile(wanted, threads=recipe.train.threads, in_one_process=False, recipe=recipe.name)
    if profile.nodes > 1:
        raise RunError("an examination runs on one machine; leave --nodes out")
    for note in check_data(recipe, needs_validation=request.split == "val"):
        notify(f"note: {note}")
    launch_task(
        folder,
        recipe,
        profile,
        LAUNCHERS[profile.launcher](profile, folder.path),
        request,
        results=folder.findings,
        keeps_logs=True,
        run_worker=run_worker,
        notify=notify,
    )
    return read_findings(folder)
