"""Runs commands of distrain in new processes, whose errors become exceptions with the same sentence."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from distrain.errors import DistrainError, ExitCode, StoppedError, UserError
from distrain.messages import PREFIX
from distrain.service.launch import without_terminal


def run_command(*arguments: str) -> Any:
    """Run a command that has `--json` in a new process, and return what it prints, as Python values.

    For the commands that have no function of their own: `doctor`, `recipes`, `bench`, `plan`, `verify`, `data check`,
    `devices` and others. Raises `UserError` for bad input and `DistrainError` for any other failure, with the sentence
    of the command line. An interrupt ends the command as well.

    >>> "digits" in distrain.run_command("recipes")
    True
    """
    argv = [sys.executable, "-m", "distrain", *arguments, "--json"]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=without_terminal(os.environ),
        start_new_session=True,  # an interrupt of the notebook's cell must not reach it as well
    )
    try:
        out, err = process.communicate()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.communicate()
        raise
    if process.returncode != ExitCode.FINISHED:
        raise _to_exception(process.returncode, err)
    return json.loads(out)


def options_of(values: Mapping[str, object]) -> list[str]:
    """Return the options that are given, those of a flag by `True`, and one for each value of a list."""
    found: list[str] = []
    for option, value in values.items():
        if value is True:
            found.append(option)
        elif isinstance(value, Iterable) and not isinstance(value, str):
            found += [word for each in value for word in (option, str(each))]
        elif value is not None and value is not False:
            found += [option, str(value)]
    return found


def _to_exception(code: int, err: str) -> DistrainError:
    lines = err.strip().splitlines()
    sentences = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    if code == ExitCode.INTERRUPTED:
        return StoppedError()
    sentence = "\n".join(sentences) or (lines or [f"the command ended with {code}, without a message"])[-1]
    return UserError(sentence) if code == ExitCode.BAD_INPUT else DistrainError(sentence)
