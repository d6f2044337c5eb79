"""`distrain cancel`: cancels a run, wherever it waits or trains."""

from pathlib import Path

import typer

from distrain.cli.options import Root, RunName


def cancel(
    reference: RunName,
    root: Root = Path("runs"),
) -> None:
    """Take a run out of its queue, or have it save and end; it counts as cancelled, and is not resumed by itself.

    Its checkpoints are kept, so `distrain resume` can still resume it.

    Example: `distrain cancel last`
    """
    from distrain.runs import query
    from distrain.service import queue

    run = query.find_run(reference, root)
    if queue.cancel(run):
        typer.echo(f"cancelled {run.path.name}")
    else:
        typer.echo(f"asked {run.path.name} to save and end; it is at step {run.read_status().step}")
