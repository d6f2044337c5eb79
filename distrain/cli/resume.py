"""`distrain resume`: resumes a run where it ran: here, or on the cluster."""

from pathlib import Path

import typer

from distrain.cli.options import Root, RunName


def resume(
    reference: RunName,
    root: Root = Path("runs"),
) -> None:
    """Resume a run on as many processes as before: in this terminal, or in the queue where it was submitted.

    Example: `distrain resume last`
    """
    from rich.console import Console

    from distrain.cli import output
    from distrain.cli.run_fit import start
    from distrain.config.profile import read_profile
    from distrain.launchers.fit_request import FitRequest
    from distrain.runs import query
    from distrain.service import queue
    from distrain.service.start import submit_again

    run = query.find_run(reference, root)
    run = type(run)(run.path.absolute())
    console = Console(highlight=False, soft_wrap=True)
    if run.read_status().state == "finished":
        output.print_finished_already(console, run)
        output.print_summary(console, run, run.read_status())
        return
    if (job_id := submit_again(run)) is not None:
        if job_id:
            output.print_submitted(console, job_id, [run])
        else:
            output.print_queued(console, [run], is_served=queue.is_served(run.path.parent))
        return
    profile = read_profile(run.profile)
    raise typer.Exit(start(FitRequest(run=run.path, options=profile.as_options())))
