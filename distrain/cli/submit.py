"""`distrain submit`: queues a recipe on this machine, or on a SLURM cluster."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from distrain.cli import complete
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, DataPath, DeviceName, Overrides, ProfileName, Restarts, RunFolder, StallTimeout


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
    queue: Annotated[
        str | None,
        typer.Option(
            metavar="local|slurm",
            help="Which queue: that of this machine (`distrain serve`), or SLURM's.",
            show_default="slurm if there is sbatch, unless the launch profile has another launcher",
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="GPUs of each node, one process each.")] = None,
    procs: Annotated[int | None, typer.Option(metavar="N", help="CPU processes of each node.")] = None,
    device: DeviceName = None,
    time: Annotated[str | None, typer.Option(metavar="H:M:S", help="Time limit; the run saves before it.")] = None,
    priority: Annotated[
        int | None,
        typer.Option(metavar="N", help="Local: higher numbers are served first.", show_default="0"),
    ] = None,
    after: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Local: start when this run has finished; repeatable.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Local: the folder that `serve` watches.", show_default="runs"),
    ] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="SLURM: nodes.", show_default="1")] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="SLURM: as for sbatch.")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="SLURM: as for sbatch.")] = None,
    qos: Annotated[str | None, typer.Option(metavar="NAME", help="SLURM: as for sbatch.")] = None,
    constraint: Annotated[
        str | None, typer.Option(metavar="FEATURES", help="SLURM: features that the nodes must have.")
    ] = None,
    dependency: Annotated[
        str | None, typer.Option(metavar="CONDITION", help="SLURM: a condition such as afterok:123.")
    ] = None,
    array: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Add a task to an array, with this value; repeatable.")
    ] = None,
    requeue: Annotated[bool, typer.Option(help="Resume automatically after the time limit and a preemption.")] = True,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="SLURM: any other option of sbatch; repeatable.")
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
    as_json: AsJson = False,
) -> None:
    """Submit a recipe to the queue of this machine or to SLURM, or submit again a run that has ended.

    On this machine `distrain serve` runs it, and may stop it for a run of higher priority: it is saved, and resumed
    later. What runs is what was submitted: the recipe, a copy of the code, the Python, the folder and the environment.

    Examples: `distrain submit cifar10 --gpus 2 --priority 5`, or on SLURM `distrain submit cifar10 --data DIR --nodes 2
    --gpus 4 --time 4:00:00 --partition gpu`. The command prints the run; `distrain queue`, `runs`, `logs`, `stop`,
    `resume`, `cancel` and `priority` work with it.
    """
    from rich.console import Console

    from distrain.cli import output, submit_local
    from distrain.config.profile import read_options
    from distrain.launchers.profile_files import read_launch_options
    from distrain.launchers.slurm import submit as submission
    from distrain.service.queue_choice import choose_queue

    options = read_options(
        gpus=gpus, device=device, processes=procs, nodes=nodes, restarts=restarts, stall_timeout_s=stall_timeout
    )
    launch_options = read_launch_options(launch, options)
    of_slurm = {
        "--nodes": nodes,
        "--partition": partition,
        "--account": account,
        "--qos": qos,
        "--constraint": constraint,
        "--dependency": dependency,
        "--sbatch": sbatch,
    }
    of_local = {"--priority": priority, "--after": after, "--root": root}
    is_local, why = choose_queue(queue, launch_options, run=run, of_slurm=of_slurm, of_local=of_local)
    if is_local:
        if queue is None:
            output.print_event(Console(stderr=True), f"note: this goes into the queue of this machine: {why}")
        submit_local.submit(
            references=recipes or [],
            tasks=array or [],
            overrides=overrides or [],
            data=data,
            run=run,
            options=submit_local.read_queue_options(
                launch_options, root=root, priority=priority, after=after, time=time, requeue=requeue
            ),
            is_snapshot=snapshot,
            extras=snapshot_extra or [],
            dry_run=dry_run,
            as_json=as_json,
        )
        return
    sbatch_options = submission.SbatchOptions(
        options=launch_options,
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
    is_free_choice = queue is None and launch_options.launcher is None and not any(of_slurm.values())
    with submit_local.suggested() if is_free_choice else nullcontext():
        job_id = submission.submit(found, is_snapshot=snapshot, extras=snapshot_extra or [])
    if as_json:
        jobs = [{"run": one.path.name, "path": str(one.path), "queue": "slurm", "job": job_id} for one in found.runs]
        print_json(jobs if len(jobs) > 1 else jobs[0])
        return
    output.print_submitted(console, job_id, list(found.runs))
    for note in found.notes:
        output.print_event(console, f"note: {note}")
