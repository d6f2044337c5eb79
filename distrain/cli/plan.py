"""`distrain plan`: what a training will take, in memory, time and disk, before it is started."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, DataPath, Overrides, ProfileName, RecipeName, Steps
from distrain.messages import byte_size, counted

if TYPE_CHECKING:
    from rich.console import Console

    from distrain.benchmark.capacity_results import Plan

NOT_KNOWN = "not known here"


def plan(
    recipe: RecipeName = "digits",
    gpus: Annotated[int | None, typer.Option(metavar="N", help="GPUs of each machine that it is to train on.")] = None,
    procs: Annotated[
        int | None, typer.Option(metavar="N", help="CPU processes of each machine that it is to train on.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Machines.", show_default="1")] = None,
    launch: ProfileName = None,
    time: Annotated[
        str | None, typer.Option(metavar="H:M:S", help="SLURM's time limit: how many jobs will it take?")
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(metavar="NAME|GB/S", help="Within a machine: nvlink4, nvlink3, pcie5, pcie4, or GB/s each way."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(metavar="NAME|GB/S", help="Of a machine: 10gbe, 25gbe, 100gbe, hdr, ndr, 8xndr, or GB/s."),
    ] = None,
    data: DataPath = None,
    overrides: Overrides = None,
    steps: Steps = None,
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="The folder of the runs: is there room on its disk?")
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Measure a few real steps here, and tell what the training will take on the machines that are named.

    Memory, the largest micro-batch, images a second, time to finish, disk, and the time limit. What is not here is
    extrapolated, with its assumptions, or not told at all.

    Example: `distrain plan imagenet-resnet50 --data DIR --gpus 8 --nodes 2 --network ndr --time 08:00:00`
    """
    from rich.console import Console

    from distrain.benchmark import capacity_plan
    from distrain.benchmark.output_paths import choose_place
    from distrain.benchmark.schedule_estimate import read_time_limit
    from distrain.config import load_recipe
    from distrain.config.profile import read_options
    from distrain.launchers.profile_files import read_launch_options

    place = choose_place(root)
    limit_s = None if time is None else read_time_limit(time)
    options = read_launch_options(launch, read_options(gpus=gpus, processes=procs, nodes=nodes))
    resolved = load_recipe(recipe, overrides=overrides or [], data=data)
    request = capacity_plan.resolve(resolved, options, reference=recipe, link=link, network=network, steps=steps)
    errors = Console(stderr=True, highlight=False)
    for sentence in request.unknown:
        errors.print(f"not known    {sentence}", soft_wrap=True, markup=False)
    found = capacity_plan.make(request, place=place, limit_s=limit_s, console=errors)
    if as_json:
        print_json(found)
    else:
        _print(Console(highlight=False), found)


def _print(console: "Console", found: "Plan") -> None:
    names = ("GPU",) if found.device == "cuda" else ("CPU process", "CPU processes")
    machines = "" if found.nodes == 1 else f" of {found.nodes} machines"
    title = f"[bold]{found.recipe}[/bold] on {counted(found.processes, *names)}{machines}: {found.batch}"
    console.print(title, soft_wrap=True)
    measured = counted(found.measured_processes, "process", "processes")
    rows = [("measured on", f"{measured}, {found.measured_device}")]
    rows += _memory_rows(found) + _speed_rows(found) + _time_rows(found) + _disk_rows(found)
    rows += [("not known", sentence) for sentence in found.unknown]
    rows += [("assumed", sentence) for sentence in found.assumptions]
    for name, words in rows:
        console.print(f"{name:<20} {words}", soft_wrap=True, markup=False)


def _memory_rows(found: "Plan") -> list[tuple[str, str]]:
    memory, figures, largest = found.memory, found.figures, found.largest_micro_batch
    known = found.step is not None
    words = f"weights {byte_size(memory.weights)}, gradients {byte_size(memory.gradients)}"
    words += f", optimizer {byte_size(memory.optimizer)}"
    words += f", averages {byte_size(memory.averages)}" if memory.averages else ""
    words += f", passes {byte_size(memory.activations) if known else NOT_KNOWN}"
    rows = [("memory of a process", words)]
    if known:
        total = "" if memory.total is None else f" of {byte_size(memory.total)}"
        rows.append(("", f"{byte_size(memory.peak)} at its peak{total}, micro-batch {figures.micro_batch_size}"))
    if largest is None:
        words = NOT_KNOWN
    elif largest == 0:
        words = "none fits into the memory that is left here"
    else:
        is_all = largest == figures.micro_batch_size * figures.accumulation
        words = f"{largest}, by trying" + (", which is all that a process has of a step" if is_all else "")
    return [*rows, ("largest micro-batch", words)]


def _speed_rows(found: "Plan") -> list[tuple[str, str]]:
    step = found.step
    if step is None or found.measured_images_per_s is None or found.measured_step_s is None:
        return [("speed", NOT_KNOWN)]
    rate = f"{found.measured_images_per_s:,.0f} images/s, {found.measured_step_s * 1e3:.1f} ms a step"
    rows = [("speed", f"{rate}, measured on {found.measured_processes}")]
    if not step.is_measured:
        words = (
            f"{step.images_per_s:,.0f} images/s, {step.step_s * 1e3:.1f} ms a step, {step.efficiency:.0%} efficiency"
        )
        rows.append((f"on {found.processes}", f"{words}, by the scale model ({step.bottleneck})"))
    return rows


def _time_rows(found: "Plan") -> list[tuple[str, str]]:
    from distrain.system.display import duration

    rows = [("steps", f"{found.total_steps:,}, {found.epochs:.4g} {'epoch' if found.epochs == 1 else 'epochs'}")]
    times, limit = found.times, found.limit
    if times is None:
        return [*rows, ("time", NOT_KNOWN)]
    parts = (
        f"steps {duration(times.steps)}, {counted(found.num_evaluations, 'evaluation')} {duration(times.evaluations)}"
    )
    parts += f", {counted(found.num_checkpoints, 'checkpoint')} {duration(times.checkpoints)}"
    rows.append(("time", f"{duration(times.total)} ({parts}, start-up {duration(times.start_up)})"))
    if limit is not None:
        rows.append(("time limit", f"{duration(limit.limit_s)}: {_limit_in_words(limit.fits, limit.jobs)}"))
    return rows


def _disk_rows(found: "Plan") -> list[tuple[str, str]]:
    disk = found.disk
    if disk is None:
        return [("disk", NOT_KNOWN)]
    room = "there is room" if disk.has_room else "there is NOT so much room"
    checkpoints = counted(disk.checkpoints, "checkpoint")
    words = f"{byte_size(disk.num_bytes)} for {checkpoints} of {byte_size(disk.checkpoint_bytes)}"
    return [("disk", f"{words}; {room} ({byte_size(disk.free_bytes)} free in {disk.folder})")]


def _limit_in_words(fits: bool, jobs: int | None) -> str:
    if fits:
        return "it fits"
    if jobs is None:
        return "no time is left to train in, after start-up and before the last save"
    return f"{counted(jobs, 'job')}: it is queued again {counted(jobs - 1, 'time')}, and loses nothing"
