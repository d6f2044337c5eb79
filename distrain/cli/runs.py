"""`distrain runs`: lists runs with their state, and shows one in detail."""

from pathlib import Path
from typing import Annotated

import typer

from distrain.cli.groups import refuse_misplaced
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, Root, RunName

app = typer.Typer(help="List runs and show one.\n\nExample: `distrain runs --sort best`", invoke_without_command=True)

Sort = Annotated[
    str, typer.Option(metavar="KEY", help="start (the oldest first), name, state, step, best, loss or time.")
]


@app.callback()
def _default(context: typer.Context, root: Root = Path("runs"), as_json: AsJson = False, sort: Sort = "start") -> None:
    if context.invoked_subcommand is None:
        list_runs(root, as_json, sort)
    refuse_misplaced(context)


@app.command("list")
def list_runs(root: Root = Path("runs"), as_json: AsJson = False, sort: Sort = "start") -> None:
    """List the runs: their state, their evaluations, and the values in which their recipes differ.

    A terminal shows the columns that fit, a pipe all of them.

    Example: `distrain runs list --root /shared/runs --json`
    """
    from rich.console import Console

    from distrain.cli import run_table
    from distrain.runs import query

    found = run_table.sort_runs(query.find_runs(root), sort)
    if as_json:
        print_json([query.summary(run) | {"recipe": run_table.recipe_name(run)} for run in found])
    else:
        run_table.print_runs(Console(highlight=False, soft_wrap=True), found, root)


@app.command("show")
def show(
    reference: RunName,
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show a run's state, its attempts, its evaluations and its checkpoints.

    Example: `distrain runs show last --json`
    """
    from rich.console import Console

    from distrain.cli import output, run_table
    from distrain.runs import query

    run = query.find_run(reference, root)
    if as_json:
        print_json(query.summary(run) | {"recipe": run_table.recipe_name(run)})
    else:
        output.print_run(Console(highlight=False, soft_wrap=True), run)
