"""Defines the plan: a command that can be printed or run."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """How the worker is started: a command, additional environment variables, a working directory, and files."""

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()  # variables of this process that the command does not inherit
    files: Mapping[Path, str] = field(default_factory=dict)  # written before the command starts
    in_process: bool = False
    torchrun: tuple[str, ...] | None = None  # the arguments of torchrun if the plan is one: it may run in a fork
    cleanup: tuple[str, ...] = ()  # command that, with the id of a killed process, ends its remains on other nodes

    def __str__(self) -> str:
        variables = "".join(f"{key}={shlex.quote(value)} " for key, value in self.env.items())
        if self.unset:
            variables += f"env {' '.join(f'-u {name}' for name in self.unset)} "
        return f"cd {shlex.quote(str(self.cwd))} && {variables}{shlex.join(self.argv)}"
