"""`distrain report`: writes what is known about runs as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from distrain.cli.options import Root
from distrain.cli.output_paths import check_file
from distrain.cli.runs import RunNames
from distrain.errors import RunError


def report(
    references: RunNames,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The HTML file to write; an earlier report is replaced.",
            show_default="RUN/report.html, or report.html for several runs",
        ),
    ] = None,
    root: Root = Path("runs"),
) -> None:
    """Write a report of a run as one HTML file that opens without a network; of up to 20 runs, a comparison first.

    Of a sweep, named by its folder or its name, it shows the table of its trials and what they say of its parameters.

    It shows what was trained on what, the results, curves, evaluations with their worst mistakes, attempts, versions
    and devices, and the commands that make the run again. `distrain eval` before it adds the results of each class.
    The names of the machine, of files and folders appear as in the run directory, environment variables do not.

    Example: `distrain report last --out digits.html`
    """
    from distrain.runs import query
    from distrain.service.sweeps.folder import find_sweep
    from distrain.service.web.report.build import build_report, build_sweep_report, is_report
    from distrain.system.files import whole_file

    sweep = find_sweep(references[0], root) if len(references) == 1 else None
    runs = [] if sweep is not None else [query.find_run(reference, root) for reference in references]
    is_one = len({run.path.resolve() for run in runs}) == 1
    if out is None and is_one:
        runs[0].check_writable(otherwise="name a file elsewhere with --out")
    own = sweep.report if sweep is not None else runs[0].report if is_one else Path("report.html")
    target = own if out is None else out.expanduser()
    check_file(target, may_replace=True)
    if target.exists() and not is_report(target):
        raise RunError(f"{target} exists and is no report; name another file with --out")
    content = build_report(runs) if sweep is None else build_sweep_report(sweep)
    with whole_file(target) as draft:
        draft.write_bytes(content)
    typer.echo(str(target))
