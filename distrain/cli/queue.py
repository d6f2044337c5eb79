"""`distrain queue`: shows the queue of this machine, and what each run in it waits for."""

import time
from pathlib import Path
from typing import Any

import typer

from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, Root


def queue(
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show the runs in the queue of this machine: those that run on which devices, and what the others wait for.

    `distrain submit` puts runs into it, and `distrain serve` runs them.

    Example: `distrain queue --json`
    """
    from rich.console import Console
    from rich.table import Table

    from distrain.service.queue import is_served
    from distrain.service.table import read_queue

    rows = read_queue(root.absolute(), now=time.time())
    if as_json:
        print_json(rows)
        return
    console = Console(highlight=False, soft_wrap=True)
    if not rows:
        typer.echo(f"the queue of {root.absolute()} is empty")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "priority", "devices", "by", ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row["run"], row["state"], str(row["priority"]), _devices(row), row["submitted_by"], row["why"])
    console.print(table, markup=False)
    if not is_served(root.absolute()):
        console.print(f"no `distrain serve` runs for {root.absolute()}: the queue waits for one", markup=False)


def _devices(row: dict[str, Any]) -> str:
    return ", ".join(row["assigned"]) or f"{row['devices']} {row['kind']}"
