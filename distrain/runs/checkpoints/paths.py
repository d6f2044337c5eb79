"""Defines the folder of checkpoints: their names, which ones are committed, and how they are deleted."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrain.system.files import read_regular

STATE = "state.json"
MANIFEST = "MANIFEST.json"
METADATA = ".metadata"  # the name that DCP gives it
_PREFIX = "step-"
_PARTIAL = ".tmp"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: `state` is the JSON part; `distrain.checkpoint.load` reads the tensors."""

    path: Path
    step: int
    state: dict[str, Any]


def final_path(folder: Path, step: int) -> Path:
    """Return the path of the committed checkpoint of `step`."""
    return folder / f"{_PREFIX}{step:08d}"


def partial_path(folder: Path, step: int) -> Path:
    """Return the path at which the checkpoint of `step` is written until it is complete."""
    return final_path(folder, step).with_suffix(_PARTIAL)


def step_of(path: Path) -> int:
    """Return the step in the name of a committed checkpoint."""
    return int(path.name.removeprefix(_PREFIX))


def newest_step(folder: Path) -> int:
    """Return the step of the newest committed checkpoint below `folder`; 0 where there is none."""
    return max(map(step_of, committed(folder)), default=0)


def committed(folder: Path) -> list[Path]:
    """Return the committed checkpoints below `folder`, the oldest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if path.name.startswith(_PREFIX) and path.is_dir()]
    return sorted((path for path in named if path.name.removeprefix(_PREFIX).isdecimal()), key=step_of)


def read(path: Path) -> Checkpoint:
    """Read the state of a committed checkpoint that was verified, here or by another rank."""
    return Checkpoint(path, step_of(path), json.loads(read_regular(path / STATE)))


def remove(path: Path) -> None:
    """Delete a committed checkpoint, renaming it first so that a kill in between leaves no partial one to be read."""
    draft = path.with_suffix(_PARTIAL)
    path.replace(draft)
    shutil.rmtree(draft)


def remove_partial(folder: Path) -> None:
    """Delete partial checkpoints that a killed process left."""
    for path in folder.glob(f"{_PREFIX}*{_PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)
