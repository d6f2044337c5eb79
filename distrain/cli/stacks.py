"""`distrain stacks`: prints the Python stack of every rank of a run, without stopping it."""

from pathlib import Path
from typing import Annotated

import typer

from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, Root, RunName


def stacks(
    reference: RunName,
    root: Root = Path("runs"),
    all_threads: Annotated[
        bool, typer.Option("--all", help="The stacks of all threads, not only the main one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the Python stack of every rank of a running training, which continues.

    A rank answers even while it hangs in native code. Without --all only its main thread is shown.

    Example: `distrain stacks last --all`
    """
    from rich.console import Console

    from distrain.cli import output
    from distrain.config.profile import read_profile
    from distrain.runs import query
    from distrain.runs.stacks import read_stacks

    run = query.find_run(reference, root)
    query.check_alive(run)
    found = read_stacks(run, world_size=read_profile(run.profile).world_size, all_threads=all_threads)
    if not as_json:
        output.print_stacks(Console(highlight=False, soft_wrap=True), found)
        return
    rows = []
    for stack in found:
        heartbeat = {} if stack.heartbeat is None else stack.heartbeat.model_dump(exclude={"threads"})
        answer = {"stack": stack.main, "threads": stack.threads}
        rows.append({"rank": stack.rank, **heartbeat, "age_s": stack.age_s, "is_silent": stack.is_silent, **answer})
    print_json(rows)
