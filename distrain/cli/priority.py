"""`distrain priority`: changes the place of a run in its queue."""

from pathlib import Path
from typing import Annotated

import typer

from distrain.cli.options import Root, RunName
from distrain.errors import RunError

_MAX = 1_000_000


def priority(
    reference: RunName,
    number: Annotated[int, typer.Argument(metavar="N", help="Runs with a higher number are served first.")],
    root: Root = Path("runs"),
) -> None:
    """Change the priority of a run in the queue of this machine, or of SLURM (as its nice value).

    A run with a lower priority may be stopped for it; it is saved, and resumed later.

    Example: `distrain priority last 10`
    """
    if abs(number) > _MAX:
        raise RunError(f"a priority is between -{_MAX} and {_MAX}, not {number}")
    from distrain.runs import query
    from distrain.service import queue

    run = query.find_run(reference, root)
    queue.set_priority(run, number)
    typer.echo(f"{run.path.name} has priority {number}")
