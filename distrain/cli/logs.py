"""`distrain logs`: prints the log of a rank, also while it is being written."""

from pathlib import Path
from typing import Annotated

import typer

from distrain.cli.options import Root, RunName


def logs(
    reference: RunName,
    root: Root = Path("runs"),
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run ends.")] = False,
    rank: Annotated[int, typer.Option(metavar="N", help="The rank whose log is printed.", min=0)] = 0,
) -> None:
    """Print the log of one rank, over all attempts of the run.

    Example: `distrain logs last -f --rank 1`
    """
    from distrain.messages import print_error
    from distrain.runs import liveness, query

    run = query.find_run(reference, root)
    for text in query.read_log(run, rank, follow=follow):
        typer.echo(text, nl=False)
    if liveness.find_dead([run]):  # no process was left to log this
        print_error(query.describe_end(run))
