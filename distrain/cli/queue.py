"""`distrain queue`: shows the queue of this machine, and what each run in it waits for."""

import time
from pathlib import Path
from typing import Any

import typer

from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, Root
from distrain.runs.local_job import counted_devices


def queue(
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show the runs in the queue of this machine: those that run on which devices, and what the others wait for.

    `distrain submit` puts runs into it, and `distrain serve` runs them.

    Example: `distrain queue --json`
    """
    from rich.console import Console

    from distrain.service.queue import is_served
    from distrain.service.table import read_queue
    from distrain.system.display import Heading, print_table

    rows = read_queue(root.absolute(), now=time.time())
    if as_json:
        print_json(rows)
        return
    console = Console(highlight=False, soft_wrap=True)
    if not rows:
        typer.echo(f"the queue of {root.absolute()} is empty")
        return
    headings = [
        Heading("run"),
        Heading("state"),
        Heading("priority", 1, is_right=True),
        Heading("devices"),
        Heading("by", 2),
    ]
    cells = [
        [row["run"], row["state"], str(row["priority"]), _devices(row), row.get("submitted_by", ""), row["why"]]
        for row in rows
    ]
    print_table(console, [*headings, Heading("", is_text=True)], cells)
    if not is_served(root.absolute()):
        console.print(f"no `distrain serve` runs for {root.absolute()}: the queue waits for one", markup=False)


def _devices(row: dict[str, Any]) -> str:
    if "devices" not in row:
        return ""
    return ", ".join(row["assigned"]) or counted_devices(row["devices"], row["kind"])
