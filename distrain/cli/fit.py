"""`distrain fit`: train a recipe here."""

from pathlib import Path
from typing import Annotated

import typer


def fit(
    recipe: Annotated[
        str | None, typer.Argument(help="A built-in recipe (`distrain recipes`) or a YAML file; digits if left out.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="Train on this many GPUs, one process each.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; the first GPU, if there is one, if left out.")
    ] = None,
    procs: Annotated[int | None, typer.Option(help="Train on this many CPU processes.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value of the recipe; repeatable.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the data: sets data.path.")] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run directory: a new one, or one to go on with.")
    ] = None,
    launcher: Annotated[
        str | None, typer.Option(help="slurm: the nodes and GPUs of the SLURM allocation that this runs in.")
    ] = None,
    restarts: Annotated[
        int, typer.Option(help="Several processes: restart after a failure, this often without a newer checkpoint.")
    ] = 3,
    stall_timeout: Annotated[
        float, typer.Option(metavar="S", help="Several processes: seconds without progress that are a failure.")
    ] = 120,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print recipe and command, and start nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the traceback of a failure.")] = False,
) -> None:
    """Train a recipe, or go on with a run that was stopped or killed.

    The recipe decides the result; --gpus or --procs only decide how many processes share the work. One process trains
    in this very process, so that breakpoint() and pdb work; more are started with torchrun.
    """
    from distrain.start import start

    code = start(
        reference=recipe,
        overrides=overrides or [],
        data=data,
        run=run,
        gpus=gpus,
        device=device,
        processes=procs,
        launcher=launcher,
        restarts=restarts,
        stall_timeout_s=stall_timeout,
        dry_run=dry_run,
        verbose=verbose,
    )
    raise typer.Exit(code)
