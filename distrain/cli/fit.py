"""`distrain fit`: trains a recipe on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from distrain.cli import complete
from distrain.cli.options import DataPath, DeviceName, Overrides, ProfileName, Restarts, RunFolder, StallTimeout


def fit(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A built-in recipe (`distrain recipes`) or a YAML file.",
            show_default="digits, or the run's own",
            autocompletion=complete.recipes,
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="Train on this many GPUs, one process each.")] = None,
    device: DeviceName = None,
    procs: Annotated[int | None, typer.Option(metavar="N", help="Train on this many CPU processes.")] = None,
    launch: ProfileName = None,
    launcher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="inprocess, torchrun, accelerate, or slurm: in the current SLURM allocation.",
            show_default="inprocess for one process, else torchrun",
            autocompletion=complete.launchers,
        ),
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(metavar="N", help="Nodes, which share the run directory; 1:2 for one or two.", show_default="1"),
    ] = None,
    node_rank: Annotated[int | None, typer.Option(metavar="R", help="Index of this node, from 0.")] = None,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="An address of node 0, to which the others connect.")
    ] = None,
    accelerate_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your configuration file for --launcher accelerate.")
    ] = None,
    overrides: Overrides = None,
    data: DataPath = None,
    run: RunFolder = None,
    restarts: Restarts = None,
    stall_timeout: StallTimeout = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for devices that other runs have.")] = False,
    queue: Annotated[
        bool, typer.Option("--queue", help="Put the run into the queue of this machine, as `distrain submit` does.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Train in the background; `distrain logs -f` shows the output.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print recipe and command, and start nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the traceback of a failure.")] = False,
    no_preflight: Annotated[bool, typer.Option("--no-preflight", help="Skip the checks of disk and memory.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="A few steps in one process with all checks on, to find an error.")
    ] = False,
    overfit: Annotated[
        int | None, typer.Option(metavar="N", help="Overfit N batches; fails if the network cannot learn them.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--profile", help="Trace a few steps with the torch profiler into the run directory.")
    ] = False,
    post_mortem: Annotated[
        bool, typer.Option("--pdb", help="One process: open the debugger after an exception that ends the training.")
    ] = False,
) -> None:
    """Train a recipe, or resume a run that was stopped or killed.

    The recipe determines the result; --gpus or --procs only determine how many processes share the work. With one
    process, training runs in the command itself, so that breakpoint() and pdb work; more are started with torchrun, or
    as --launcher says. On several nodes, run the command on each one, with its --node-rank and the same --rendezvous.

    Example: `distrain fit cifar10 --gpus 4 --set train.epochs=20 --set 'augment.train=[RandomHorizontalFlip]'`
    """
    from distrain.cli.background import check_background, start_detached
    from distrain.cli.run_fit import start
    from distrain.config.debug_presets import DebugOptions
    from distrain.config.profile import read_options
    from distrain.launchers.fit_request import FitRequest
    from distrain.launchers.profile_files import read_launch_options

    options = read_options(
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
    )
    check_background(queue=queue, detach=detach, wait=wait, in_terminal={"--debug": debug, "--pdb": post_mortem})
    if queue:
        from distrain.cli import submit_local

        submit_local.submit(
            references=[recipe] if recipe else [],
            tasks=[],
            overrides=overrides or [],
            data=data,
            run=run,
            options=submit_local.read_queue_options(
                read_launch_options(launch, options), root=None if run is None else run.absolute().parent
            ),
            dry_run=dry_run,
        )
        return
    request = FitRequest(
        reference=recipe,
        overrides=overrides or [],
        data=data,
        run=run,
        launch=launch,
        options=options,
        dry_run=dry_run,
        verbose=verbose,
        preflight=not no_preflight,
        wait=wait,
        debug_options=DebugOptions(debug=debug, overfit_batches=overfit, trace=trace, post_mortem=post_mortem),
    )
    raise typer.Exit(start_detached(request) if detach else start(request))
