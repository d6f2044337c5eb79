"""Defines the folder of checkpoints: how one is named, which are committed, and how one is removed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE = "state.json"
MANIFEST = "MANIFEST.json"
METADATA = ".metadata"  # DCP's own name
_PREFIX = "step-"
_PARTIAL = ".tmp"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: `state` is the JSON part, the tensors are read by `distrain.checkpoint.load`."""

    path: Path
    step: int
    state: dict[str, Any]


def final_path(folder: Path, step: int) -> Path:
    """Return where the committed checkpoint of `step` stands."""
    return folder / f"{_PREFIX}{step:08d}"


def partial_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` is written until it is whole."""
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
    """Return a committed checkpoint that has been verified, here or by another rank."""
    return Checkpoint(path, step_of(path), json.loads((path / STATE).read_text(encoding="utf-8")))


def remove(path: Path) -> None:
    """Delete a committed checkpoint: first its name, so that a kill in between leaves no half of it to be read."""
    draft = path.with_suffix(_PARTIAL)
    path.replace(draft)
    shutil.rmtree(draft)


def remove_partial(folder: Path) -> None:
    """Delete what a killed process left half-written or half-deleted."""
    for path in folder.glob(f"{_PREFIX}*{_PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)
