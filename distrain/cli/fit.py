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
    launch: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="Where to train: `distrain launch` lists names; or a file.")
    ] = None,
    launcher: Annotated[
        str | None,
        typer.Option(help="inprocess, torchrun, accelerate, or slurm: the SLURM allocation that this runs in."),
    ] = None,
    nodes: Annotated[
        str | None, typer.Option(metavar="N", help="Machines, all with this run directory; 1:2 for one or two.")
    ] = None,
    node_rank: Annotated[int | None, typer.Option(metavar="R", help="Which of the machines this is, from 0.")] = None,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the machines meet: an address of machine 0.")
    ] = None,
    accelerate_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own configuration file for --launcher accelerate.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value of the recipe; repeatable.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the data: sets data.path.")] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run directory: a new one, or one to go on with.")
    ] = None,
    restarts: Annotated[
        int | None,
        typer.Option(help="Several processes: restarts after a failure without a newer checkpoint, 3 if left out."),
    ] = None,
    stall_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="Several processes: seconds without progress that are a failure, 120 if left out."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print recipe and command, and start nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the traceback of a failure.")] = False,
    no_preflight: Annotated[
        bool, typer.Option("--no-preflight", help="Begin even where disk or memory look too small.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="A few steps in one process, every check on, to find a fault.")
    ] = False,
    overfit: Annotated[
        int | None, typer.Option(metavar="N", help="Learn N batches by heart: fails where the network cannot.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--profile", help="Trace a few steps with the torch profiler, into the run directory.")
    ] = False,
    post_mortem: Annotated[
        bool, typer.Option("--pdb", help="One process: open the debugger where an exception ends the training.")
    ] = False,
) -> None:
    """Train a recipe, or go on with a run that was stopped or killed.

    The recipe decides the result; --gpus or --procs only decide how many processes share the work. One process trains
    in this very process, so that breakpoint() and pdb work; more are started with torchrun, or as --launcher
    says. Several machines are started one by one, each with its --node-rank, and meet at --rendezvous.
    """
    from distrain.debugging import Aids
    from distrain.launchers.profile import read_options
    from distrain.start import start

    code = start(
        reference=recipe,
        overrides=overrides or [],
        data=data,
        run=run,
        launch=launch,
        options=read_options(
            gpus=gpus,
            device=device,
            processes=procs,
            launcher=launcher,
            nodes=nodes,
            node_rank=node_rank,
            rendezvous=rendezvous,
            restarts=restarts,
            stall_timeout_s=stall_timeout,
            accelerate_config=accelerate_config,
        ),
        dry_run=dry_run,
        verbose=verbose,
        preflight=not no_preflight,
        aids=Aids(debug=debug, overfit_batches=overfit, trace=trace, post_mortem=post_mortem),
    )
    raise typer.Exit(code)
