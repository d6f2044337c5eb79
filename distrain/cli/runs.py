"""`distrain runs`: what was trained here, and how it stands."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List runs and show one.", invoke_without_command=True)

Root = Annotated[Path, typer.Option("--root", help="The folder that holds the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_runs()


@app.command("list")
def list_runs(root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """List the runs, the oldest first."""
    from rich.console import Console

    from distrain import report, runs

    found = runs.find_runs(root)
    if as_json:
        typer.echo(json.dumps([runs.facts(run) for run in found], indent=1))
    else:
        report.print_runs(Console(highlight=False), found, root)


@app.command("show")
def show(
    reference: Annotated[str, typer.Argument(metavar="RUN", help="A run's path, name, beginning of it, or `last`.")],
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show where a run stands, its attempts, its evaluations and its checkpoints."""
    from rich.console import Console

    from distrain import report, runs

    run = runs.find_run(reference, root)
    if as_json:
        typer.echo(json.dumps(runs.facts(run), indent=1))
    else:
        report.print_run(Console(highlight=False), run)
