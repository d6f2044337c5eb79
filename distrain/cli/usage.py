"""Explains in one sentence what is wrong with a command line: its command, an option, or the value of an option."""

import re
from typing import Any

import typer
from pydantic import ValidationError

from distrain.messages import did_you_mean, joined, nearest, shown

# Depending on its version, typer uses click's exceptions or copies of them: this is the only public way to both.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

# The names of commands in other tools, by their name here.
_NAMES_ELSEWHERE = {
    "fit": ("train", "run", "start"),
    "runs": ("list", "ls", "ps", "status", "queue"),
    "eval": ("evaluate", "test", "validate", "val"),
    "predict": ("infer", "inference", "classify"),
    "resume": ("continue", "restart"),
    "stop": ("cancel", "kill", "abort"),
    "logs": ("log", "tail"),
    "bench": ("benchmark", "profile"),
    "recipes": ("models", "configs", "config", "init"),
    "data check": ("check",),
    "data pack": ("pack",),
    "data info": ("info",),
    "import": ("convert",),
}


def is_request_for_help(error: Exception) -> bool:
    """Whether a command was called without arguments, and has printed its help for this case."""
    return type(error).__name__ == "NoArgsIsHelpError"


def explain(error: Any) -> str:
    """Return the sentence for a `UsageError`."""
    context, kind = error.ctx, type(error).__name__
    words = [] if context is None else context.command_path.removeprefix("python -m ").split()
    command = " ".join(["distrain", *words[1:]])
    see = f"; see `{command} --help`"
    if kind == "NoSuchOption":
        return f"{command} has no option {error.option_name}{_option_hint(error.option_name, context) or see}"
    if kind == "BadOptionUsage":
        fault = "does not take a value" if "does not take" in error.message else "needs a value"
        return f"{error.option_name} {fault}"
    if found := re.match(r"No such command '(.*?)'\.", error.message):
        return f"{command} has no command {found[1]}{_command_hint(found[1], context) or see}"
    if kind == "MissingParameter":
        name = re.sub(r"^Missing \w+ '(.*)'\.$", r"\1", error.format_message())
        return f"{command} is missing {name}{see}"
    if found := re.match(r"Got unexpected extra argument\S* \((.*)\)", error.message):
        return f"{command} does not take the argument {found[1]}{see}"
    if (param := getattr(error, "param", None)) is not None:
        return f"{_named(param)} {_fault(error)}"
    return f"{_decapitalised(error.format_message())}{see}"


def _command_hint(name: str, context: Any) -> str:
    known = list(context.command.commands)
    if context.parent is None and (
        found := [command for command, others in _NAMES_ELSEWHERE.items() if name in others]
    ):
        return did_you_mean(found)
    return nearest(name, known)


def _fault(error: Any) -> str:
    """Return the value of a parameter and what is wrong with it."""
    if not isinstance(error.__cause__, ValidationError):
        return f"is not valid: {_decapitalised(error.message)}"
    from distrain.config.validation import must_be

    faults = error.__cause__.errors(include_url=False)
    value = shown(faults[0]["input"])
    if choices := re.findall(
        r"'([^']*)'", str(faults[0].get("ctx", {}).get("error", ""))
    ):  # the value, then the choices
        return f"{value}: must be {joined(choices[1:])}{nearest(value, choices[1:], count=1)}"
    return f"{value}: must be {joined(list(dict.fromkeys(map(must_be, faults))))}"


def _named(param: Any) -> str:
    return str(param.opts[0] if param.param_type_name == "option" else param.metavar or param.name)


def _option_hint(option: str, context: Any) -> str:
    """Return the options that were probably meant, or the recipe key of that name."""
    known = [] if context is None else [name for param in context.command.params for name in param.opts]
    if "--set" in known:
        from distrain.config import Recipe
        from distrain.config.validation import keys_of

        leaf = option.lstrip("-").replace("-", "_")
        keys = [key for key in keys_of(Recipe) if key.rpartition(".")[2] == leaf]
        if keys and option not in known:
            return f"; use --set {joined([f'{key}=VALUE' for key in keys[:3]])}"
    return nearest(option, [name for name in known if name.startswith("--")], cutoff=0.7)


def _decapitalised(text: str) -> str:
    return f"{text[:1].lower()}{text[1:]}".rstrip(".")
