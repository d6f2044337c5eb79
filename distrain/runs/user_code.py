"""Finds the user's code of a run: in the folder where the run was started, and objects in its own directory."""

import json
from contextlib import suppress
from pathlib import Path

from distrain.config.user_code import add_to_sys_path
from distrain.runs.directory import RunDirectory
from distrain.runs.objects import provide_objects
from distrain.system.files import read_regular
from distrain.system.filesystem import is_own


def find_code(run: RunDirectory) -> None:
    """Import the user's modules from the working directory first, then from the folder where `run` was started.

    That folder is left out where it, or the run, belongs to another user, whose code nobody should run unasked. The
    objects that the run was started with are found too.
    """
    candidates = [run.code]
    with suppress(OSError, ValueError, KeyError, TypeError):
        candidates.append(Path(json.loads(read_regular(run.plan))["cwd"]))
    own = [folder for folder in candidates if folder.is_dir() and is_own(folder)] if is_own(run.path) else []
    add_to_sys_path(Path.cwd(), *own)
    provide_objects(run)
