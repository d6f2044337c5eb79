"""`distrain checkpoints`: lists, verifies, shows, prunes and exports the checkpoints of a run."""

import json
import math
import re
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distrain.cli import complete
from distrain.cli.average import average
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, Root, RunName
from distrain.errors import ExitCode, RunError
from distrain.messages import MEBIBYTE
from distrain.system.filesystem import check_writable, is_own

if TYPE_CHECKING:
    from distrain.runs.checkpoints import Entry
    from distrain.runs.directory import RunDirectory

MAX_SHOWN = 10  # items printed of a list in state.json

app = typer.Typer(
    help="List, verify, show, prune, average and export the checkpoints of a run.\n\n"
    "Example: `distrain checkpoints list last`",
    no_args_is_help=True,
)
app.command("average")(average)


@app.command("list")
def list_checkpoints(reference: RunName, root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """List the checkpoints of a run, the oldest first, without verifying them.

    Example: `distrain checkpoints list last`
    """
    from rich.console import Console

    from distrain.config.metrics import ALWAYS_MEASURED, format_value, title_of
    from distrain.runs import checkpoints
    from distrain.system.display import Heading, duration, print_table

    run = _find(reference, root)
    entries = checkpoints.read_catalog(run.checkpoints)
    rows = _facts(entries)
    if as_json:
        print_json(rows)
        return
    shown = list(dict.fromkeys((ALWAYS_MEASURED, run.read_status().best_by)))
    titles = ("step", "size", "age", *(title_of(name) for name in shown), "")
    cells = [
        [
            str(row["step"]),
            f"{row['bytes'] / MEBIBYTE:.1f} MiB",
            duration(max(0.0, time.time() - row["written"])),
            *(format_value(name, row["evaluation"] or {}) for name in shown),
            "best" if row["best"] else "",
        ]
        for row in rows
    ]
    console = Console(highlight=False, soft_wrap=True)
    if rows:
        print_table(console, [Heading(title, is_right=True) for title in titles], cells)
    else:
        console.print(f"no checkpoints in {run.checkpoints}", markup=False)
    if (step := checkpoints.run_best_step(entries)) is not None and checkpoints.find_best(entries) is None:
        console.print(f"the best evaluation, at step {step}, has no checkpoint")
    if bad := sorted(path.name for path in run.checkpoints.glob("quarantine/step-*")):
        console.print(f"quarantined: {', '.join(bad)}", soft_wrap=True)


@app.command("verify")
def verify(
    reference: RunName,
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="STEP",
            help="A step, best or last.",
            show_default="all of them",
            autocompletion=complete.checkpoints,
        ),
    ] = None,
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Compare every file with its digest; exit code 1 if a checkpoint is damaged. Nothing is moved.

    Example: `distrain checkpoints verify last best`
    """
    from rich.console import Console

    from distrain.runs import checkpoints
    from distrain.system.live_line import LiveProgress

    run = _find(reference, root)
    entries = checkpoints.read_catalog(run.checkpoints)
    chosen = checkpoints.choose(run.checkpoints, which or "last")
    entries = [entry for entry in entries if which is None or entry.path == chosen]
    faults: dict[str, str | None] = {}
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for entry in entries:
        with LiveProgress(console, f"verifying {entry.path.name}", entry.num_bytes) as progress:
            fault = checkpoints.find_corruption(entry.path, advance=progress.advance)
        if entry.path.is_dir():  # else a running training has deleted it
            faults[entry.path.name] = fault
    if as_json:
        print_json([{"checkpoint": name, "fault": fault} for name, fault in faults.items()])
    else:
        for name, fault in faults.items():
            typer.echo(f"{name}  {'good' if fault is None else f'BAD: {fault}'}")
    raise typer.Exit(ExitCode.FAILED if any(faults.values()) else ExitCode.FINISHED)


@app.command("show")
def show(
    reference: RunName,
    which: Annotated[
        str, typer.Argument(metavar="STEP", help="A step, best or last.", autocompletion=complete.checkpoints)
    ] = "last",
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show the state of a checkpoint, and the shape and type of every tensor in it.

    Example: `distrain checkpoints show last 46`
    """
    from distrain.runs import checkpoints

    path = checkpoints.choose(_find(reference, root).checkpoints, which)
    _check(path)
    from distrain.checkpoint.load import describe_tensors  # torch: only for a checkpoint that is good

    state = checkpoints.read(path).state
    tensors = describe_tensors(path)
    if as_json:
        shown = {name: {"shape": shape, "dtype": dtype} for name, (shape, dtype) in tensors.items()}
        print_json({"checkpoint": str(path), "state": state, "tensors": shown})
        return
    typer.echo(str(path))
    for name, value in state.items():
        typer.echo(f"{name:<20} {_shortened(value)}")
    for name, (shape, dtype) in tensors.items():
        typer.echo(f"{dtype:<9} {'x'.join(map(str, shape)) or 'scalar':<16} {name}")


@app.command("prune")
def prune(
    keep_last: Annotated[int, typer.Option("--keep-last", metavar="N", min=1, help="How many of the newest to keep.")],
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="A run's path, its name or the beginning of it, or `last`.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All runs below --root that do not train.")] = False,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Delete only what is older: 30d, 12h or 90m.", show_default="any age"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be deleted, and delete nothing.")
    ] = False,
    root: Root = Path("runs"),
) -> None:
    """Delete older checkpoints, except the best and every n-th as in the run's recipe. Not while the run trains.

    Example: `distrain checkpoints prune --all --keep-last 1 --older-than 30d --dry-run`
    """
    from distrain.runs import query

    if everything and reference is not None:
        raise RunError(f"--all means all runs below --root; remove it, or {reference}")
    if not everything and reference is None:
        raise RunError("name a run, or give --all for all runs below --root")
    if everything and not root.is_dir():
        raise RunError(f"there is no folder {root}; name that of the runs with --root")
    limit = math.inf if older_than is None else time.time() - _read_age(older_than)
    runs = [_find(reference, root)] if reference is not None else query.find_runs(root)
    count = sum(_prune(run, keep_last, limit, dry_run=dry_run, is_one_of_many=everything) for run in runs)
    if not count:
        typer.echo("nothing to delete")


@app.command("consolidate")
def consolidate(
    reference: RunName,
    target: Annotated[
        list[str],
        typer.Argument(
            metavar="[STEP] FILE",
            help="The .safetensors file to write; before it a step, best or last (default: last).",
        ),
    ],
    root: Root = Path("runs"),
) -> None:
    """Write the model of a checkpoint as one safetensors file that the plain model loads with strict=True.

    Example: `distrain checkpoints consolidate last best model.safetensors`
    """
    if len(target) > 2:
        raise RunError(f"{' '.join(target)} are too many arguments; give a step, best or last, and one file")
    file = Path(target[-1]).expanduser()
    if file.suffix != ".safetensors":
        raise RunError(f"{file} does not end in .safetensors")
    if file.exists():
        raise RunError(f"{file} exists; name another file")
    check_writable(file.absolute().parent, otherwise="name a file elsewhere")
    from distrain.config import read_recipe
    from distrain.runs import checkpoints

    run = _find(reference, root)
    path = checkpoints.choose(run.checkpoints, target[0] if len(target) == 2 else "last")
    _check(path)
    from distrain.checkpoint.consolidate import consolidate as write  # torch: only for a checkpoint that is good
    from distrain.checkpoint.load import has_packed_state

    num_bytes = write(path, file, recipe_name=read_recipe(run.recipe).name)
    typer.echo(f"wrote {file}: the model of {path.name}, {num_bytes / MEBIBYTE:.1f} MiB")
    if has_packed_state(path):
        typer.echo("not all of its extra state is tensors: read it with distrain.export.read_state for load_state_dict")


def _prune(run: "RunDirectory", keep_last: int, limit: float, *, dry_run: bool, is_one_of_many: bool) -> int:
    """Delete the checkpoints of a run that retention does not keep and that were written before `limit`.

    Returns how many. Of many runs, those that train, or belong to another user, are skipped.
    """
    from distrain.config import read_recipe
    from distrain.runs import checkpoints

    if is_one_of_many and (run.is_held or not is_own(run.path)):
        return 0
    if not dry_run:
        run.check_writable(otherwise="ask its owner to prune it")
    config = read_recipe(run.recipe).checkpoint
    with nullcontext() if dry_run else run.hold_trainer_lock():
        expired = checkpoints.expired(
            checkpoints.read_catalog(run.checkpoints),
            keep_last=keep_last,
            keep_best=config.keep_best,
            keep_every_steps=config.keep_every_steps,
        )
        found = [entry for entry in expired if entry.written < limit]
        for entry in found:
            if not dry_run:
                checkpoints.remove(entry.path)
            of_run = f" of {run.path.name}" if is_one_of_many else ""
            typer.echo(f"{'would delete' if dry_run else 'deleted'} {entry.path.name}{of_run}")
    return len(found)


def _read_age(text: str) -> float:
    """Return the seconds of an age such as 30d, 12h or 90m."""
    found = re.fullmatch(r"(\d+)([dhm])", text.strip())
    if found is None:
        raise RunError(f"--older-than {text} is not an age; give days, hours or minutes: 30d, 12h, 90m")
    return float(found[1]) * {"d": 86400, "h": 3600, "m": 60}[found[2]]


def _find(reference: str, root: Path) -> "RunDirectory":
    from distrain.runs import query

    return query.find_run(reference, root)


def _check(path: Path) -> None:
    from distrain.errors import CheckpointError
    from distrain.runs.checkpoints import find_corruption

    if fault := find_corruption(path):
        raise CheckpointError(f"checkpoint {path} is not used: {fault}")


def _facts(entries: list["Entry"]) -> list[dict[str, Any]]:
    from distrain.runs.checkpoints import find_best

    best = find_best(entries)
    return [
        {
            "step": entry.step,
            "path": str(entry.path),
            "bytes": entry.num_bytes,
            "written": entry.written,
            "evaluation": entry.evaluation,
            "best": entry == best,
        }
        for entry in entries
    ]


def _shortened(value: Any) -> str:
    if isinstance(value, list) and len(value) > MAX_SHOWN:
        return f"{json.dumps(value[:MAX_SHOWN])[:-1]}, ...] ({len(value)})"
    return json.dumps(value)
