"""`distrain runs`: lists, shows, compares, ranks, labels and removes runs."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from distrain.cli import complete
from distrain.cli.groups import refuse_misplaced
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, Root, RunName
from distrain.errors import RunError
from distrain.messages import counted

app = typer.Typer(
    help="List, show, compare, rank, label and remove runs.\n\n"
    "Example: `distrain runs --sort best --filter state=finished`",
    invoke_without_command=True,
)

RunNames = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Runs by path, name, beginning of the name, or `last`.",
        autocompletion=complete.runs,
    ),
]

Sort = Annotated[
    str,
    typer.Option(
        metavar="KEY",
        help="start (the oldest first), best, loss (the best first), or any key of --columns in ascending order; "
        "-KEY reverses.",
    ),
]

Columns = Annotated[
    str | None,
    typer.Option(
        metavar="KEY,...",
        help="What to show: name, state, start, step, best, loss, time, tags, note, a key of the recipe, a field of "
        "status.json, or a metric: val/top1 of the newest evaluation, best.val/top1 of the best one, train/loss.",
        show_default="state, evaluations, and where recipes differ",
        autocompletion=complete.columns,
    ),
]

Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=VALUE",
        help="Only runs with this state, name, recipe, tag, or value of any key of --columns: state=finished, "
        "tag=baseline, name=digits-*, 'optimizer.lr<0.1'; also !=, <, >, <= and >=. Repeatable: all must hold.",
    ),
]


@app.callback()
def _default(
    context: typer.Context,
    root: Root = Path("runs"),
    as_json: AsJson = False,
    sort: Sort = "start",
    filters: Filters = None,
    columns: Columns = None,
) -> None:
    if context.invoked_subcommand is None:
        list_runs(root, as_json, sort, filters, columns)
    refuse_misplaced(context)


@app.command("list")
def list_runs(
    root: Root = Path("runs"),
    as_json: AsJson = False,
    sort: Sort = "start",
    filters: Filters = None,
    columns: Columns = None,
) -> None:
    """List the runs: their state, their evaluations, their tags, and the values in which their recipes differ.

    A terminal shows the columns that fit, a pipe all of them; those of --columns are always shown. With --json and
    --columns, the objects have the path of the run and these keys.

    Example: `distrain runs list --columns optimizer.lr,best.val/top1 --sort -best.val/top1 --filter state=finished`
    """
    from rich.console import Console

    from distrain.cli import run_table
    from distrain.runs.filters import matching
    from distrain.runs.overview import pick, read_overviews
    from distrain.runs.sorting import sort_runs

    gc.disable()  # this process ends soon, and the search for cycles in thousands of runs would take seconds
    everything = read_overviews(root)
    found = sort_runs(matching(everything, filters or []), sort)
    keys = [key.strip() for key in (columns or "").split(",") if key.strip()]
    if as_json:
        print_json(pick(found, keys) if keys else [overview.summary() for overview in found])
    elif everything and not found:
        typer.echo(
            f"none of the {counted(len(everything), 'run')} in {root.absolute()} matches {' '.join(filters or [])}"
        )
    else:
        run_table.print_runs(Console(highlight=False, soft_wrap=True), found, root, columns=keys)


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

    from distrain.cli import output
    from distrain.runs import query
    from distrain.runs.overview import read_each

    run = query.find_run(reference, root)
    if as_json:
        print_json(read_each([run])[0].summary())
    else:
        output.print_run(Console(highlight=False, soft_wrap=True), run)


@app.command("compare")
def compare_runs(
    references: RunNames,
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Compare up to 20 runs: where their recipes differ, then their environments, then what they have reached.

    Example: `distrain runs compare digits-20261121-045003-1b21 last`
    """
    from rich.console import Console

    from distrain.cli.run_comparison import print_comparison
    from distrain.runs import query
    from distrain.runs.comparison import compare

    comparison = compare([query.find_run(reference, root) for reference in references])
    if as_json:
        print_json(comparison.as_json())
    else:
        print_comparison(Console(highlight=False, soft_wrap=True), comparison)


@app.command("best")
def best(
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A metric of evaluations, such as val/loss.",
            show_default="the one by which the runs select their best evaluation",
            autocompletion=complete.metrics,
        ),
    ] = None,
    filters: Filters = None,
    count: Annotated[int, typer.Option("-n", metavar="K", min=1, help="How many runs, the best first.")] = 1,
    only_path: Annotated[bool, typer.Option("--path", help="Print only the path of the checkpoint.")] = False,
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Find the run with the best checkpoint by a metric: its name, the value, the step, and the checkpoint's path.

    Losses and errors are best when small, all others when large. Only checkpoints that were kept count. For scripts,
    --path prints nothing but paths, and --json a list.

    Example: `distrain eval "$(distrain runs best --filter tag=baseline --path)"`
    """
    from rich.console import Console

    from distrain.cli import run_table
    from distrain.runs.filters import matching
    from distrain.runs.overview import read_overviews
    from distrain.runs.ranking import rank

    if only_path and as_json:
        raise RunError("--path and --json both choose what is printed; remove one")
    ranked = rank(matching(read_overviews(root), filters or []), metric)[:count]
    if not ranked:
        which = f" that matches {' '.join(filters)}" if filters else ""
        raise RunError(f"no run in {root.absolute()}{which} has a checkpoint with {metric or 'an evaluation'}")
    if as_json:
        print_json(run_table.describe_ranked(ranked))
    elif only_path:
        typer.echo("\n".join(str(run.checkpoint) for run in ranked))
    else:
        run_table.print_ranked(Console(highlight=False, soft_wrap=True), ranked)


@app.command("tag")
def tag(
    reference: RunName,
    tags: Annotated[
        list[str], typer.Argument(metavar="TAG...", help="Words by which `--filter tag=TAG` finds the run.")
    ],
    remove: Annotated[bool, typer.Option("--remove", help="Take the tags away.")] = False,
    root: Root = Path("runs"),
) -> None:
    """Add tags to a run, or remove them.

    Example: `distrain runs tag last baseline`
    """
    from distrain.runs import query
    from distrain.runs.labels import check_tags, read_labels, write_labels

    run = query.find_run(reference, root)
    check_tags(tags)
    labels = read_labels(run)
    if remove and (missing := [tag for tag in tags if tag not in labels.tags]):
        raise RunError(f"run {run.path.name} has no tag {missing[0]}; its tags: {', '.join(labels.tags) or 'none'}")
    kept = [tag for tag in labels.tags if not (remove and tag in tags)]
    labels.tags = kept if remove else list(dict.fromkeys([*kept, *tags]))
    write_labels(run, labels)
    typer.echo(f"{run.path.name}: tags {', '.join(labels.tags) or 'none'}")


@app.command("note")
def note(
    reference: RunName,
    text: Annotated[str, typer.Argument(metavar="NOTE", help="Replaces the note; an empty one removes it.")],
    root: Root = Path("runs"),
) -> None:
    """Write a note on a run, which `distrain runs show` prints.

    Example: `distrain runs note last "with the corrected labels"`
    """
    from distrain.runs import query
    from distrain.runs.labels import read_labels, write_labels

    run = query.find_run(reference, root)
    labels = read_labels(run)
    labels.note = text.strip()
    write_labels(run, labels)
    typer.echo(f"{run.path.name}: {f'note {labels.note}' if labels.note else 'no note'}")


@app.command("rm")
def rm(
    references: RunNames,
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete the runs for good; checkpoints cannot be restored.")
    ] = False,
    root: Root = Path("runs"),
) -> None:
    """Move runs to the trash, the folder .trash beside them, from which they can be moved back; never a running one.

    Example: `distrain runs rm digits-20261121-045003-1b21`
    """
    from distrain.runs import query
    from distrain.runs.labels import check_removable, remove_run

    runs = {run.path.resolve(): run for run in [query.find_run(reference, root) for reference in references]}
    for run in runs.values():  # all or none
        check_removable(run)
    for run in runs.values():
        moved = remove_run(run, purge=purge)
        typer.echo(f"deleted {run.path}" if moved is None else f"moved {run.path.name} to {moved}")
