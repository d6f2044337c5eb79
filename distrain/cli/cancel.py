"""`distrain cancel`: ends a run for good, wherever it waits or trains."""

from pathlib import Path

import typer

from distrain.cli.options import Root, RunName


def cancel(
    reference: RunName,
    root: Root = Path("runs"),
) -> None:
    """End a run for good: take it out of its queue, or make it save and end. Nothing resumes it by itself.

    Its checkpoints are kept; `distrain resume` takes it up again.

    Example: `distrain cancel last`
    """
    from distrain.runs import query
    from distrain.service import queue

    run = query.find_run(reference, root)
    if queue.cancel(run):
        typer.echo(f"cancelled {run.path.name}")
    else:
        typer.echo(f"requested {run.path.name} to save and end; it is at step {run.read_status().step}")
