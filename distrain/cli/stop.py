"""`distrain stop`: makes a run save and end, so that it can be resumed later."""

from pathlib import Path
from typing import Annotated

import typer

from distrain.cli.options import Root, RunName


def stop(
    reference: RunName,
    root: Root = Path("runs"),
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run has ended, and print how.")] = False,
) -> None:
    """Ask a run to stop at its next step, save, and end; `distrain resume` resumes it.

    Example: `distrain stop last --wait`
    """
    from rich.console import Console

    from distrain.cli import output
    from distrain.runs import liveness, query
    from distrain.service import queue

    run = query.find_run(reference, root)
    left = queue.stop(run)
    console = Console(highlight=False, soft_wrap=True)
    if left is not None:
        console.print(f"{left}; `distrain resume` submits the run again", markup=False)
        return
    if not wait:
        step = run.read_status().step
        console.print(f"asked {run.path.name} to stop; it is at step {step}", markup=False, soft_wrap=True)
        return
    liveness.wait_for_end(run)
    if not output.print_end(console, run):
        raise typer.Exit(1)
