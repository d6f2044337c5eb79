"""`distrain resume`: go on with a run where it was: here, or on the cluster."""

from pathlib import Path
from typing import Annotated

import typer


def resume(
    reference: Annotated[str, typer.Argument(metavar="RUN", help="A run's path, name, beginning of it, or `last`.")],
    root: Annotated[Path, typer.Option("--root", help="The folder that holds the runs.")] = Path("runs"),
) -> None:
    """Go on with a run on as many processes as before: in this terminal, or as a SLURM job if it was one."""
    from rich.console import Console

    from distrain import report, runs, submit
    from distrain.debugging import Aids
    from distrain.launchers.profile import read_profile
    from distrain.start import start

    run = runs.find_run(reference, root)
    run = type(run)(run.path.absolute())
    console = Console(highlight=False, soft_wrap=True)
    if run.read_status().state == "finished":
        report.print_summary(console, run, run.read_status())
        return
    if run.read_job() is not None:
        report.print_submitted(console, submit.submit_again(run), [run])
        return
    profile = read_profile(run.profile)
    code = start(
        reference=None,
        overrides=[],
        data=None,
        run=run.path,
        launch=None,
        options=profile.as_wanted(),
        dry_run=False,
        verbose=False,
        preflight=True,
        aids=Aids(),
    )
    raise typer.Exit(code)
