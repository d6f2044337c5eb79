"""Averages the weights of checkpoints, and writes the result as a run of one checkpoint, or as one file."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distrain.checkpoint.load import read_model
from distrain.checkpoint.tensors import Tensors
from distrain.checkpoint.writer import Checkpointer
from distrain.config import Recipe
from distrain.distributed.world import World
from distrain.errors import RunError
from distrain.runs.checkpoints.paths import STATE
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Status
from distrain.tensors.module_state import MODEL

_ENVIRONMENT = ("profile", "plan", "environment", "task")  # files by which commands find code, and show the run


def average_checkpoints(paths: Sequence[Path]) -> Tensors:
    """Return the mean of verified checkpoints: weights and buffers by their names in the plain model, on the CPU.

    Floating-point tensors are averaged in float64; whole numbers, and extra state, are those of the last of `paths`.
    Moving averages replace the weights that they average, as in evaluation. Raises `RunError` for checkpoints of
    different networks or classes.
    """
    last = read_model(paths[-1])
    sums = {name: tensor.double() for name, tensor in last.items() if tensor.is_floating_point()}
    classes = _read_state(paths[-1])["classes"]
    for path in paths[:-1]:
        if _read_state(path)["classes"] != classes:
            raise RunError(f"{path} has other classes than {paths[-1]}; average checkpoints of the same classes")
        tensors = read_model(path)
        for name in sums:
            if name not in tensors or tensors[name].shape != sums[name].shape:
                raise RunError(f"{path} is of another network than {paths[-1]}: {name} is not in it, or differs")
            sums[name] += tensors[name]
    return last | {name: (value / len(paths)).to(last[name].dtype) for name, value in sums.items()}


def write_averaged_run(run: RunDirectory, recipe: Recipe, tensors: Tensors, paths: Sequence[Path]) -> Path:
    """Write a finished run with one checkpoint, that of the newest step among `paths`, and return its folder.

    The recipe and the other files of the run are those of the last of `paths`. Raises a `UserError` where the run
    exists.
    """
    source, state = RunDirectory(paths[-1].parents[1]), _read_state(paths[-1])
    step = max(int(_read_state(path)["step"]) for path in paths)
    with run.created():
        for name in _ENVIRONMENT:
            if (file := getattr(source, name)).is_file():
                shutil.copy2(file, getattr(run, name))
        text = recipe.to_yaml()
        run.recipe.write_text(text, encoding="utf-8")
        before = source.read_status()
        run.write_status(
            Status(state="finished", step=step, total_steps=step, epoch=before.epoch, best_by=before.best_by)
        )
        of_training = {"step": step, "best": None, "evaluation": None, "is_record_due": False, "ending": None}
        world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
        named = {f"{MODEL}{name}": tensor for name, tensor in tensors.items()}
        with Checkpointer(run.checkpoints, config=recipe.checkpoint, world=world) as checkpointer:
            checkpointer.save(step, tensors=named, state={**state, **of_training})
    return run.checkpoints / f"step-{step:08d}"


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return state
