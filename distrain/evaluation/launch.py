"""Checks and launches an evaluation, and reads its results, in the control plane."""

from collections.abc import Callable

from distrain.config import Recipe
from distrain.config.profile import LaunchOptions, resolve_profile
from distrain.errors import RunError, TaskError
from distrain.launchers import LAUNCHERS
from distrain.launchers.launch_task import launch_task
from distrain.launchers.prepare import check_data
from distrain.launchers.supervisor import RunWorker
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import Findings, read_findings
from distrain.runs.task import EvaluationRequest


def run_evaluation(
    folder: RunDirectory,
    recipe: Recipe,
    request: EvaluationRequest,
    options: LaunchOptions,
    *,
    run_worker: RunWorker,
    notify: Callable[[str], None],
) -> Findings:
    """Run the evaluation on the processes of `options` and return its results; a single process is this one.

    Raises a `UserError` for an invalid request, `TaskError` with the first failure of a process, and
    `StoppedError` after a stop.
    """
    profile = resolve_profile(options, threads=recipe.train.threads, in_one_process=False, recipe=recipe.name)
    if profile.nodes > 1:
        raise RunError("an evaluation runs on one node; remove --nodes")
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
    findings = read_findings(folder)
    if findings is None:
        raise TaskError(f"{folder.findings} cannot be read; run the command again")
    return findings
