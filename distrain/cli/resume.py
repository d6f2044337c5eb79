"""`distrain resume`: resumes or extends a run where it ran: here, or on the cluster."""

from pathlib import Path

import typer

from distrain.cli.options import Overrides, Root, RunName


def resume(
    reference: RunName,
    overrides: Overrides = None,
    root: Root = Path("runs"),
) -> None:
    """Resume a run on as many processes as before: in this terminal, or in the queue where it was submitted.

    With --set, the recipe changes from the newest checkpoint on: a run that has finished trains further, or another
    learning rate or schedule holds. What may change is in the README of runs.

    Examples: `distrain resume last`, `distrain resume last --set train.epochs=20`
    """
    from rich.console import Console

    from distrain.cli import output
    from distrain.cli.run_fit import start
    from distrain.config.debug_presets import DebugOptions
    from distrain.config.profile import read_profile
    from distrain.launchers.extension import is_extended
    from distrain.launchers.fit_request import FitRequest
    from distrain.launchers.prepare import resolve_run
    from distrain.runs import query
    from distrain.service import queue
    from distrain.service.start import submit_again

    run = query.find_run(reference, root)
    run = type(run)(run.path.absolute())
    console = Console(highlight=False, soft_wrap=True)
    recipe = resolve_run(None, overrides, None, run.path, DebugOptions())[1] if overrides else None
    if run.read_status().state == "finished" and (recipe is None or not is_extended(run, recipe)):
        output.print_finished_already(console, run)
        output.print_summary(console, run, run.read_status())
        return
    if (job_id := submit_again(run, recipe)) is not None:
        if job_id:
            output.print_submitted(console, job_id, [run])
        else:
            output.print_queued(console, [run], is_served=queue.is_served(run.path.parent))
        return
    profile = read_profile(run.profile)
    raise typer.Exit(start(FitRequest(run=run.path, overrides=overrides or [], options=profile.as_options())))
