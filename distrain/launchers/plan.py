"""Defines the plan: a command that can be printed as well as run."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """What starts the worker: a command, environment variables added to this process's, a folder, and its files."""

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()  # variables of this process that it does without
    files: Mapping[Path, str] = field(default_factory=dict)  # written before the command starts
    in_process: bool = False
    torchrun: tuple[str, ...] | None = None  # the arguments of a plan that is torchrun's: it may run in a fork
    cleanup: tuple[str, ...] = ()  # with the killed process's id, ends what it leaves on other machines

    def __str__(self) -> str:
        variables = "".join(f"{key}={shlex.quote(value)} " for key, value in self.env.items())
        if self.unset:
            variables += f"env {' '.join(f'-u {name}' for name in self.unset)} "
        return f"cd {shlex.quote(str(self.cwd))} && {variables}{shlex.join(self.argv)}"
