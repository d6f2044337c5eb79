"""`distrain logs`: what a rank of a run says, as it says it."""

from pathlib import Path
from typing import Annotated

import typer


def logs(
    reference: Annotated[str, typer.Argument(metavar="RUN", help="A run's path, name, beginning of it, or `last`.")],
    root: Annotated[Path, typer.Option("--root", help="The folder that holds the runs.")] = Path("runs"),
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until the run ends.")] = False,
    rank: Annotated[int, typer.Option(help="The rank whose log is printed.", min=0)] = 0,
) -> None:
    """Print the log of one rank, over all attempts of the run."""
    from distrain import runs

    run = runs.find_run(reference, root)
    for text in runs.read_log(run, rank, follow=follow):
        typer.echo(text, nl=False)
