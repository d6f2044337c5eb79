"""The best evaluation of a run is one of the trained network, and has a checkpoint."""

import json
from pathlib import Path

import torch
from torch import nn

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.runs import checkpoints
from distrain.runs.checkpoints.integrity import describe_files, read_manifest
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Status
from distrain.training import trainer
from distrain.training.monitor import RankMonitor
from tests.command import checkpoint_steps, metrics

evaluations: list[torch.Tensor] = []


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy in training; an evaluation gives more than the one before it, and so is never better."""
    found = nn.functional.cross_entropy(logits, targets)
    if logits.requires_grad:
        return found
    evaluations.append(found)
    return found * 0 + len(evaluations)


WORSENING = [
    f"loss={{name: '{__name__}:loss'}}",
    "data={source: digits, batch_size: 64, train_samples: 256, val_samples: 64}",
    "log={tensorboard: false, wandb: disabled}",
    "eval={at_start: true, best: loss, every_epochs: null, every_steps: 3}",
    "checkpoint={every_epochs: null, keep_last: 1}",
]


def train(path: Path, *overrides: str) -> Status:
    run = RunDirectory(path)
    if not run.checkpoints.exists():
        run.create()
    profile = Profile(launcher="inprocess", device="cpu", processes=1, threads=torch.get_num_threads())
    recipe = load_recipe("digits", overrides=[*WORSENING, *overrides])
    with RankMonitor(run, rank=0) as monitor:
        assert trainer.train(recipe, profile, run, World(0, 1, 0, torch.device("cpu")), monitor)
    return run.read_status()


def losses(path: Path) -> dict[int, float]:
    return {int(record["step"]): record["val/loss"] for record in metrics(path) if "val/loss" in record}


def test_evaluation_before_the_first_step_is_never_the_best_and_the_best_is_kept(tmp_path: Path) -> None:
    ended = train(tmp_path, "train={epochs: 5}")
    found = losses(tmp_path)
    first = found.pop(0)
    assert first < min(found.values())
    assert ended.best is not None
    assert ended.best["step"] == 3
    assert checkpoint_steps(tmp_path) == [3, 20]
    kept = checkpoints.find_best(checkpoints.read_catalog(tmp_path / "checkpoints"))
    assert kept is not None
    assert kept.step == 3


def test_patience_begins_with_the_first_evaluation_of_the_trained_network(tmp_path: Path) -> None:
    ended = train(tmp_path, "train={epochs: 50, patience: 2}")
    assert ended.best is not None
    assert ended.best["step"] == 3
    assert ended.step == ended.total_steps == 3 + 2 * 3
    assert checkpoint_steps(tmp_path) == [3, 9]


def test_run_that_keeps_no_best_calls_none_of_what_is_left_the_best(tmp_path: Path) -> None:
    ended = train(tmp_path, "train={epochs: 5}", "checkpoint.keep_best=false")
    assert ended.best is not None
    assert ended.best["step"] == 3
    assert checkpoint_steps(tmp_path) == [20]
    assert checkpoints.find_best(checkpoints.read_catalog(tmp_path / "checkpoints")) is None


def test_best_at_step_0_of_an_older_checkpoint_is_forgotten(tmp_path: Path) -> None:
    train(tmp_path, "train={epochs: 5}", "checkpoint={keep_last: 9, every_steps: 3}")
    run = RunDirectory(tmp_path)
    for path in checkpoints.committed(run.checkpoints)[1:]:
        checkpoints.remove(path)
    (path,) = checkpoints.committed(run.checkpoints)
    state = checkpoints.read(path).state
    state["best"]["step"] = 0
    (path / "state.json").write_text(json.dumps(state))
    manifest = {**read_manifest(path), **describe_files([path / "state.json"])}
    (path / "MANIFEST.json").write_text(json.dumps({"files": manifest}))
    ended = train(tmp_path, "train={epochs: 5}", "checkpoint={keep_last: 1}")
    assert ended.best is not None
    assert ended.best["step"] == 6
    assert checkpoint_steps(tmp_path) == [6, 20]
