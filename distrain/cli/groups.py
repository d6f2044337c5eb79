"""Lets a group of commands take the options of its `list` command, which it runs when it is called by itself."""

import typer

from distrain.errors import UserError


def refuse_misplaced(context: typer.Context) -> None:
    """Raise `UserError` where an option stands before a subcommand, which would not see it."""
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
