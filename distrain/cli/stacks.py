"""`distrain stacks`: where every rank of a run stands, in Python, without stopping it."""

import json
from pathlib import Path
from typing import Annotated

import typer


def stacks(
    reference: Annotated[str, typer.Argument(metavar="RUN", help="A run's path, name, beginning of it, or `last`.")],
    root: Annotated[Path, typer.Option("--root", help="The folder that holds the runs.")] = Path("runs"),
    all_threads: Annotated[
        bool, typer.Option("--all", help="The stacks of all threads, not only the main one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the Python stack of every rank of a run that goes on; the run does not stop for it."""
    from rich.console import Console

    from distrain import report, runs
    from distrain.stacks import ask_for_all_threads, read_stacks

    run = runs.find_run(reference, root)
    runs.check_alive(run)
    found = ask_for_all_threads(run) if all_threads else read_stacks(run)
    if not as_json:
        report.print_stacks(Console(highlight=False), found)
        return
    facts = []
    for stack in found:
        said = {} if stack.heartbeat is None else stack.heartbeat.model_dump()
        facts.append({"rank": stack.rank, **said, "age_s": stack.age_s, "is_silent": stack.is_silent})
    typer.echo(json.dumps(facts, indent=1))
