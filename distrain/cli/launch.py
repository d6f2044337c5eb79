"""`distrain launch`: shows the launch profiles that ship with distrain, for `distrain fit --launch`."""

from typing import Annotated

import typer

from distrain.cli import complete
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson
from distrain.errors import LaunchError
from distrain.messages import nearest

app = typer.Typer(
    help="List and show launch profiles: where to train, and on how many processes.\n\n"
    "Example: `distrain launch show cpu-2`"
)


@app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_profiles()


@app.command("list")
def list_profiles(as_json: AsJson = False) -> None:
    """List the built-in launch profiles, each with a description.

    Example: `distrain launch list --json`
    """
    from distrain.launchers.profile_files import builtin_profiles

    rows = {
        name: path.read_text(encoding="utf-8").splitlines()[1].lstrip("# ") for name, path in builtin_profiles().items()
    }
    if as_json:
        print_json(rows)
        return
    for name, headline in rows.items():
        typer.echo(f"{name:<{max(map(len, rows))}}  {headline}")


@app.command("show")
def show(
    name: Annotated[
        str, typer.Argument(metavar="PROFILE", help="A built-in launch profile.", autocompletion=complete.profiles)
    ],
) -> None:
    """Print a launch profile, which begins with the equivalent command.

    Example: `distrain launch show gpu-4 > mine.yaml`
    """
    from distrain.launchers.profile_files import builtin_profiles

    found = builtin_profiles()
    if name not in found:
        hint = nearest(name, found, count=1) or f"; use {', '.join(found)}"
        raise LaunchError(f"unknown launch profile {name!r}{hint}")
    typer.echo(found[name].read_text(encoding="utf-8").rstrip())
