"""`distrain bench`: measures the speed and scaling of a recipe on this machine, and what limits it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, DataPath, DeviceName, Overrides, RecipeName, Steps
from distrain.messages import MEBIBYTE

if TYPE_CHECKING:
    from rich.console import Console

    from distrain.benchmark.scaling_run import Report


def bench(
    recipe: RecipeName = "digits",
    data: DataPath = None,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", help="On 1, 2, 4, ... up to this many GPUs.", show_default="all")
    ] = None,
    procs: Annotated[
        int | None, typer.Option(metavar="N", help="On 1, 2, 4, ... up to this many CPU processes.")
    ] = None,
    device: DeviceName = None,
    weak: Annotated[
        bool,
        typer.Option("--weak", help="Weak scaling: data.batch_size is for one process, and grows with their number."),
    ] = False,
    steps: Steps = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the scaling curve and the parts of a step.")
    ] = None,
    root: Annotated[
        Path,
        typer.Option("--root", metavar="DIR", help="The folder of the runs, on whose disk checkpoints are measured."),
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Measure a recipe on this machine, by real steps in temporary run directories, and report what limits it.

    Measured are the throughput on 1, 2, 4, ... processes, the loader and the network alone, the parts of a step,
    checkpoints, the reduction of the gradients, and memory. Nothing is kept.

    Example: `distrain bench imagefolder-resnet18 --data photos --procs 2 --plot bench.png`
    """
    from rich.console import Console

    from distrain.benchmark import scaling_run
    from distrain.benchmark.output_paths import check_plot_path, choose_place
    from distrain.config import load_recipe
    from distrain.config.profile import read_options

    place = choose_place(root)
    if plot is not None:
        check_plot_path(plot)
    resolved = load_recipe(recipe, overrides=overrides or [], data=data)
    options = read_options(gpus=gpus, device=device, processes=procs)
    request = scaling_run.resolve(resolved, options, reference=recipe, steps=steps, is_weak=weak)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    report = scaling_run.run(request, place=place, console=errors)
    if plot is not None:
        from distrain.benchmark.plot import draw

        draw(report, plot)
    if as_json:
        print_json(report)
        return
    console = Console(highlight=False, soft_wrap=True)
    _print(console, report)
    if plot is not None:
        console.print(f"plot         {plot}", soft_wrap=True, markup=False)


def _print(console: "Console", report: "Report") -> None:
    from distrain.messages import counted

    figures = report.figures
    versions = report.environment["versions"]

    def line(title: str, text: str) -> None:
        console.print(f"{title:<12} {text}", soft_wrap=True, markup=False)

    console.print(
        f"[bold]{report.recipe}[/bold]: {report.model} on {report.source}, {report.precision}", soft_wrap=True
    )
    line("machine", f"{figures.device}, {counted(report.environment['cpus'], 'CPU')}, torch {versions['torch']}")
    line("processes", f"{figures.processes}, of {counted(figures.threads, 'thread')}; {_batch(report)}")
    step = figures.step_s
    measured = f"{step.count} x {counted(step.steps, 'step')}"
    middle = f"{step.lower * 1e3:.2f} to {step.upper * 1e3:.2f} in the middle half of {measured}"
    line("throughput", f"{figures.images_per_s:,.0f} images/s, {step.median * 1e3:.2f} ms per step ({middle})")
    line("start-up", f"{report.start_up_s:.1f} s to the end of the first step")
    _print_scaling(console, report)
    for reason in report.left_out:
        line("skipped", reason)
    _print_parts(console, report)
    if figures.loader_images_per_s is not None and figures.compute_images_per_s is not None:
        workers = counted(figures.num_workers, "loader process", "loader processes")
        line("loader", f"{figures.loader_images_per_s:,.0f} images/s alone ({workers} for each process)")
        line("compute", f"{figures.compute_images_per_s:,.0f} images/s alone, always on the same batch")
    if (reduction := figures.communication) is not None:
        exposed = ""
        if reduction.exposed_s is not None:
            added = f"by {reduction.exposed_s * 1e3:.2f} ms"
            exposed = f"; it does {f'extend a step {added}' if reduction.exposed_s else 'not measurably extend a step'}"
        line(
            "reduction",
            f"{reduction.gradient_bytes / MEBIBYTE:.2f} MiB in {reduction.all_reduce_s * 1e3:.2f} ms "
            f"({reduction.bus_bandwidth(figures.processes) / 1e9:.2f} GB/s over each link), one number in "
            f"{reduction.latency_s * 1e3:.3f} ms{exposed}",
        )
    if (saving := figures.saving) is not None:
        line(
            "checkpoint",
            f"{saving.num_bytes / MEBIBYTE:.2f} MiB; training is blocked for {saving.blocked_s * 1e3:.1f} ms (the "
            f"first time {saving.first_blocked_s * 1e3:.1f}), on disk after {saving.commit_s:.3f} s",
        )
    memory = figures.memory
    parts = {"weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer}
    parts |= {"averages": memory.averages} if memory.averages else {}
    sizes = ", ".join(f"{name} {size / MEBIBYTE:,.1f}" for name, size in parts.items())
    line(
        "memory",
        f"{memory.peak / MEBIBYTE:,.0f} MiB at its peak in a process: {sizes}, "
        f"passes {memory.activations / MEBIBYTE:,.1f}",
    )
    for note in figures.notes:
        line("note", note)
    for sentence in report.verdict:
        console.print(f"[bold]verdict[/bold]      {sentence}", soft_wrap=True)


def _print_scaling(console: "Console", report: "Report") -> None:
    from distrain.system.display import Heading, print_table

    if len(report.scaling) < 2:
        return
    titles = ("processes", "batch", "images/s", "ms per step", "efficiency")
    rows = [
        [
            str(point.processes),
            f"{point.global_batch_size:,}",
            f"{point.images_per_s:,.0f}",
            f"{point.step_ms:.2f}",
            "-" if point.efficiency is None else f"{point.efficiency:.0%}",
        ]
        for point in report.scaling
    ]
    print_table(console, [Heading(title, is_right=True) for title in titles], rows)


def _print_parts(console: "Console", report: "Report") -> None:
    from distrain.benchmark.step_phases import PARTS
    from distrain.system.display import Heading, print_table

    parts = report.figures.parts_s
    if parts is None:
        return
    total = sum(parts.values())
    headings = [Heading("part of a step"), Heading("ms", is_right=True), Heading("share", is_right=True)]
    rows = {title: parts.get(name, 0.0) for name, title in PARTS.items()}
    print_table(console, headings, [[title, f"{s * 1e3:.3f}", f"{s / total:.1%}"] for title, s in rows.items()])


def _batch(report: "Report") -> str:
    figures = report.figures
    accumulated = f" x {figures.accumulation}" if figures.accumulation > 1 else ""
    return f"global batch {figures.global_batch_size}, micro-batch {figures.micro_batch_size}{accumulated}"
