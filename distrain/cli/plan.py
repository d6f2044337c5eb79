"""`distrain plan`: estimates the memory, time and disk space of a run before it starts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distrain.cli import complete
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, DataPath, Overrides, ProfileName, Steps
from distrain.messages import byte_size, counted

if TYPE_CHECKING:
    from rich.console import Console

    from distrain.benchmark.capacity_results import Plan

UNKNOWN = "unknown here"


def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A built-in recipe (`distrain recipes`) or a YAML file.",
            show_default="digits, or the run's own",
            autocompletion=complete.recipes,
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="GPUs of each node to train on.")] = None,
    procs: Annotated[int | None, typer.Option(metavar="N", help="CPU processes of each node to train on.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Nodes.", show_default="1")] = None,
    launch: ProfileName = None,
    time: Annotated[
        str | None, typer.Option(metavar="H:M:S", help="SLURM's time limit, to count the jobs that are needed.")
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|GB/S", help="Links in a node: nvlink4, nvlink3, pcie5, pcie4, or GB/s in each direction."
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(metavar="NAME|GB/S", help="Network of a node: 10gbe, 25gbe, 100gbe, hdr, ndr, 8xndr, or GB/s."),
    ] = None,
    data: DataPath = None,
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="A run to extend, whose recipe --set changes.")
    ] = None,
    steps: Steps = None,
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="The folder of the runs, whose disk space is checked.")
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Measure a few real steps here, and estimate the resources of the training on the given nodes.

    These are memory, the largest micro-batch, images per second, time, disk space, and the time limit. What cannot be
    measured here is extrapolated, with its assumptions, or reported as unknown. With --run, the plan is that of all
    steps of an extended run, and what changes in its recipe is printed.

    Example: `distrain plan imagenet-resnet50 --data DIR --gpus 8 --nodes 2 --network ndr --time 08:00:00`
    """
    from rich.console import Console

    from distrain.benchmark import capacity_plan
    from distrain.benchmark.output_paths import choose_place
    from distrain.benchmark.schedule_estimate import read_time_limit
    from distrain.cli import output
    from distrain.config import load_recipe
    from distrain.config.debug_presets import DebugOptions
    from distrain.config.profile import read_options
    from distrain.launchers.extension import find_changes
    from distrain.launchers.prepare import resolve_run
    from distrain.launchers.profile_files import read_launch_options
    from distrain.runs import query

    place = choose_place(root)
    limit_s = None if time is None else read_time_limit(time)
    options = read_launch_options(launch, read_options(gpus=gpus, processes=procs, nodes=nodes))
    errors = Console(stderr=True, highlight=False)
    if run is None:
        resolved = load_recipe(recipe or "digits", overrides=overrides or [], data=data)
    else:
        existing = query.find_run(str(run), root)
        resolved = resolve_run(recipe, overrides or [], data, existing.path, DebugOptions())[1]
        console = errors if as_json else Console(highlight=False)
        output.print_extension(console, existing, find_changes(existing, resolved))
    request = capacity_plan.resolve(
        resolved, options, reference=recipe or resolved.name, link=link, network=network, steps=steps
    )
    for sentence in request.unknown:
        errors.print(f"unknown      {sentence}", soft_wrap=True, markup=False)
    found = capacity_plan.make(request, place=place, limit_s=limit_s, console=errors)
    if as_json:
        print_json(found)
    else:
        _print(Console(highlight=False), found)


def _print(console: "Console", found: "Plan") -> None:
    names = ("GPU",) if found.device == "cuda" else ("CPU process", "CPU processes")
    nodes = "" if found.nodes == 1 else f" of {found.nodes} nodes"
    title = f"[bold]{found.recipe}[/bold] on {counted(found.processes, *names)}{nodes}: {found.batch}"
    console.print(title, soft_wrap=True)
    measured = counted(found.measured_processes, "process", "processes")
    rows = [("measured on", f"{measured}, {found.measured_device}")]
    rows += _memory_rows(found) + _speed_rows(found) + _time_rows(found) + _disk_rows(found)
    rows += [("unknown", sentence) for sentence in found.unknown]
    rows += [("assumed", sentence) for sentence in found.assumptions]
    for name, text in rows:
        console.print(f"{name:<20} {text}", soft_wrap=True, markup=False)


def _memory_rows(found: "Plan") -> list[tuple[str, str]]:
    memory, figures, largest = found.memory, found.figures, found.largest_micro_batch
    is_known = found.step is not None
    text = f"weights {byte_size(memory.weights)}, gradients {byte_size(memory.gradients)}"
    text += f", optimizer {byte_size(memory.optimizer)}"
    text += f", averages {byte_size(memory.averages)}" if memory.averages else ""
    text += f", passes {byte_size(memory.activations) if is_known else UNKNOWN}"
    rows = [("memory of a process", text)]
    if is_known:
        total = "" if memory.total is None else f" of {byte_size(memory.total)}"
        rows.append(("", f"{byte_size(memory.peak)} at its peak{total}, micro-batch {figures.micro_batch_size}"))
    if largest is None:
        text = UNKNOWN
    elif largest == 0:
        text = "none fits into the memory available here"
    else:
        is_all = largest == figures.micro_batch_size * figures.accumulation
        text = f"{largest}, by trial" + (", which is all samples of a process in a step" if is_all else "")
    return [*rows, ("largest micro-batch", text)]


def _speed_rows(found: "Plan") -> list[tuple[str, str]]:
    step = found.step
    if step is None or found.measured_images_per_s is None or found.measured_step_s is None:
        return [("speed", UNKNOWN)]
    rate = f"{found.measured_images_per_s:,.0f} images/s, {found.measured_step_s * 1e3:.1f} ms per step"
    rows = [("speed", f"{rate}, measured on {found.measured_processes}")]
    if not step.is_measured:
        speed = (
            f"{step.images_per_s:,.0f} images/s, {step.step_s * 1e3:.1f} ms per step, {step.efficiency:.0%} efficiency"
        )
        rows.append((f"on {found.processes}", f"{speed}, by the scaling model ({step.bottleneck})"))
    return rows


def _time_rows(found: "Plan") -> list[tuple[str, str]]:
    from distrain.system.display import duration

    rows = [("steps", f"{found.total_steps:,}, {found.epochs:.4g} {'epoch' if found.epochs == 1 else 'epochs'}")]
    times, limit = found.times, found.limit
    if times is None:
        return [*rows, ("time", UNKNOWN)]
    parts = (
        f"steps {duration(times.steps)}, {counted(found.num_evaluations, 'evaluation')} {duration(times.evaluations)}"
    )
    parts += f", {counted(found.num_checkpoints, 'checkpoint')} {duration(times.checkpoints)}"
    rows.append(("time", f"{duration(times.total)} ({parts}, start-up {duration(times.start_up)})"))
    if limit is not None:
        rows.append(("time limit", f"{duration(limit.limit_s)}: {_describe_limit(limit.fits, limit.jobs)}"))
    return rows


def _disk_rows(found: "Plan") -> list[tuple[str, str]]:
    disk = found.disk
    if disk is None:
        return [("disk", UNKNOWN)]
    space = "it fits" if disk.has_room else "it does NOT fit"
    checkpoints = counted(disk.checkpoints, "checkpoint")
    needed = f"{byte_size(disk.num_bytes)} for {checkpoints} of {byte_size(disk.checkpoint_bytes)}"
    return [("disk", f"{needed}; {space} ({byte_size(disk.free_bytes)} free in {disk.folder})")]


def _describe_limit(fits: bool, jobs: int | None) -> str:
    if fits:
        return "it fits"
    if jobs is None:
        return "there is no time for training between start-up and the last save"
    return f"{counted(jobs, 'job')}: it is requeued {counted(jobs - 1, 'time')}, and loses nothing"
