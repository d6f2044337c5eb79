"""Supports command groups that accept the options of their `list` command, which is their default."""

import typer

from distrain.errors import UserError


def refuse_misplaced(context: typer.Context) -> None:
    """Raise `UserError` where an option comes before a subcommand, which would not see it."""
    if context.invoked_subcommand is None:
        return
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name is not None
        and (source := context.get_parameter_source(option.name))
        and source.name == "COMMANDLINE"
    ]
    if given:
        command = f"{context.info_name} {context.invoked_subcommand}"
        raise UserError(f"{', '.join(given)} must come after the command: distrain {command} {given[0]} ...")
