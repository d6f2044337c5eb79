"""`distrain recipes`: lists, shows and copies the built-in recipes, and explains their keys."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from distrain.cli import complete
from distrain.cli.groups import refuse_misplaced
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson
from distrain.errors import RecipeError
from distrain.system.files import write_atomically
from distrain.system.filesystem import check_writable

app = typer.Typer(
    help="List, show and copy the built-in recipes.\n\nExample: `distrain recipes init digits my.yaml`",
    invoke_without_command=True,
)


@app.callback()
def _default(context: typer.Context, as_json: AsJson = False) -> None:
    if context.invoked_subcommand is None:
        list_recipes(as_json)
    refuse_misplaced(context)


@app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the built-in recipes.

    Example: `distrain recipes list --json`
    """
    from rich.console import Console

    from distrain import config as recipes
    from distrain.system.display import Heading, print_table

    found = {name: _headline(text) for name, text in recipes.builtin_recipes().items()}
    if as_json:
        print_json(found)
        return
    console = Console(highlight=False, soft_wrap=True)
    print_table(console, [Heading("recipe"), Heading("what it trains", is_text=True)], list(found.items()))
    console.print("\n`distrain recipes show NAME` prints one, `distrain recipes keys` all keys.")


@app.command("show")
def show(
    name: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A built-in recipe or a YAML file.", autocompletion=complete.recipes)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Show it with this value; repeatable.", autocompletion=complete.keys
        ),
    ] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print all values, including defaults.")] = False,
) -> None:
    """Print a recipe as it was written, or with all values.

    Example: `distrain recipes show cifar10 --resolved`
    """
    from rich.console import Console
    from rich.syntax import Syntax

    from distrain import config as recipes

    full = recipes.load_recipe(name, overrides=overrides or [])
    as_written = recipes.builtin_recipes().get(name) or Path(name).expanduser().read_text(encoding="utf-8")
    text = full.to_yaml() if resolved or overrides else as_written
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text.rstrip(), "yaml", background_color="default", word_wrap=True))
    else:
        typer.echo(text.rstrip())


@app.command("init")
def init(
    name: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="The built-in recipe to copy.", autocompletion=complete.recipes),
    ] = "digits",
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE.yaml", help="The file to write.", show_default="RECIPE.yaml here")
    ] = None,
) -> None:
    """Write a copy of a built-in recipe to a file, to be edited.

    Example: `distrain recipes init imagefolder-resnet18 my.yaml`
    """
    from distrain import config as recipes
    from distrain.data.layout.checks import needs_path

    texts = recipes.builtin_recipes()
    if name not in texts:
        recipes.load_recipe(name, overrides=[])  # its error names the nearest recipe
        raise RecipeError(f"{name} is already a file; `distrain recipes init` copies built-in recipes")
    target = path or Path(f"{name}.yaml")
    if target.exists():
        raise RecipeError(f"{target} exists; name another file")
    check_writable(target.absolute().parent, otherwise="name another file")
    write_atomically(target, texts[name])
    data = " --data DIR" if needs_path(recipes.load_recipe(str(target), overrides=[]).data) else ""
    typer.echo(f"wrote {target}; edit it, then: distrain fit {shlex.quote(str(target))}{data}")


@app.command("keys")
def keys(
    section: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Only keys with this beginning, for example `train`.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Explain all keys of a recipe, which --set can change.

    Example: `distrain recipes keys optimizer`
    """
    from rich.console import Console
    from rich.markup import escape

    from distrain import config as recipes
    from distrain.config.validation import similar_keys
    from distrain.messages import did_you_mean

    rows = [row for row in recipes.fields() if row[0].startswith(section)]
    if not rows:
        near = did_you_mean(similar_keys(section, [row[0] for row in recipes.fields()]))
        raise RecipeError(f"no key begins with {section!r}{near or '; `distrain recipes keys` lists all'}")
    if as_json:
        names = ("key", "type", "default", "meaning")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    console = Console(highlight=False, soft_wrap=True)
    for key, kind, default, meaning in rows:
        details = escape(f"{kind}; {'' if default == 'required' else 'default '}{default}")
        console.print(f"[bold]{key}[/bold]  [dim]{details}[/dim]")
        console.print(f"    {meaning}", markup=False)


def _headline(text: str) -> str:
    return text.splitlines()[0].lstrip("# ").partition(": ")[2]
