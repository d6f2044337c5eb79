"""`distrain submit`: trains a recipe on a SLURM cluster."""

from pathlib import Path
from typing import Annotated

import typer

from distrain.cli import complete
from distrain.cli.options import DataPath, Overrides, ProfileName, Restarts, RunFolder, StallTimeout


def submit(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE",
            help="A built-in recipe or a YAML file; several are the tasks of an array.",
            show_default="digits",
            autocompletion=complete.recipes,
        ),
    ] = None,
    launch: ProfileName = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Nodes.", show_default="1")] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="GPUs of each node, one process each.")] = None,
    procs: Annotated[int | None, typer.Option(metavar="N", help="CPU processes of each node.")] = None,
    time: Annotated[str | None, typer.Option(metavar="H:M:S", help="Time limit; the run saves before it.")] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="As for sbatch.")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="As for sbatch.")] = None,
    qos: Annotated[str | None, typer.Option(metavar="NAME", help="As for sbatch.")] = None,
    constraint: Annotated[
        str | None, typer.Option(metavar="FEATURES", help="Features that the nodes must have.")
    ] = None,
    dependency: Annotated[
        str | None, typer.Option(metavar="CONDITION", help="A condition such as afterok:123.")
    ] = None,
    array: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Add a task to an array, with this value; repeatable.")
    ] = None,
    requeue: Annotated[bool, typer.Option(help="Resume automatically after the time limit and a preemption.")] = True,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any other option of sbatch; repeatable.")
    ] = None,
    overrides: Overrides = None,
    data: DataPath = None,
    run: RunFolder = None,
    restarts: Restarts = None,
    stall_timeout: StallTimeout = None,
    snapshot: Annotated[
        bool, typer.Option(help="Run a copy of this folder's code: what git tracks, else the Python files.")
    ] = True,
    snapshot_extra: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="A further file or folder for the copy; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print recipe and command, and start nothing.")] = False,
) -> None:
    """Submit a recipe to SLURM, or submit again a run that has ended.

    Example: `distrain submit cifar10 --data DIR --nodes 2 --gpus 4 --time 4:00:00 --partition gpu`. The command
    prints the run directory of the job; `distrain runs`, `logs`, `stop` and `resume` work with it.
    """
    from rich.console import Console

    from distrain.cli import output
    from distrain.config.profile import read_options
    from distrain.launchers.profile_files import read_launch_options
    from distrain.launchers.slurm import submit as submission

    options = read_options(gpus=gpus, processes=procs, nodes=nodes, restarts=restarts, stall_timeout_s=stall_timeout)
    sbatch_options = submission.SbatchOptions(
        options=read_launch_options(launch, options),
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        dependency=dependency,
        requeue=requeue,
        extras=tuple(sbatch or []),
    )
    found = submission.resolve(
        references=recipes or [],
        tasks=array or [],
        overrides=overrides or [],
        data=data,
        run=run,
        sbatch=sbatch_options,
    )
    console = Console(highlight=False, soft_wrap=True)
    if dry_run:
        output.print_plan(console, found.recipes[0], found.plan)
        return
    job_id = submission.submit(found, is_snapshot=snapshot, extras=snapshot_extra or [])
    output.print_submitted(console, job_id, list(found.runs))
    for note in found.notes:
        output.print_event(console, f"note: {note}")
