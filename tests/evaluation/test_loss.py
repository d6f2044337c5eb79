"""`distrain eval` gives the loss of training, including everything that the recipe adds to it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.evaluation.request import resolve
from distrain.evaluation.worker import evaluate_checkpoint
from distrain.runs import checkpoints
from distrain.runs.checkpoints.integrity import describe_files, read_manifest
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import read_findings
from distrain.training import trainer
from distrain.training.monitor import RankMonitor

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
CLASSES = 4
BASE = [
    "model={name: mobilenet_v2, head: replace}",
    "data={source: tensors, batch_size: 16}",
    "augment={train: [], eval: [], mean: null, std: null}",
    "log={tensorboard: false, wandb: disabled}",
    "train={epochs: 1, micro_batch_size: 8}",
    "optimizer.lr=0.01",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise whose classes have different shares in training and in validation."""
    draws = np.random.default_rng(3)
    train = draws.choice(CLASSES, 40, p=[0.5, 0.25, 0.15, 0.1])
    train[:CLASSES] = range(CLASSES)
    file = tmp_path_factory.mktemp("data") / "data.npz"
    val = np.repeat(np.arange(CLASSES), 5)
    images = draws.integers(0, 256, (len(train) + len(val), 3, 32, 32), dtype=np.uint8)
    np.savez(
        file,
        train_images=images[: len(train)],
        train_labels=train,
        val_images=images[len(train) :],
        val_labels=val,
    )
    return file


def train(path: Path, data: Path, *overrides: str) -> RunDirectory:
    run = RunDirectory(path)
    run.create()
    recipe = load_recipe("digits", overrides=[*BASE, *overrides], data=str(data))
    run.recipe.write_text(recipe.to_yaml())
    profile = Profile(launcher="inprocess", device="cpu", processes=1, threads=torch.get_num_threads())
    with RankMonitor(run, rank=0) as monitor:
        assert trainer.train(recipe, profile, run, ALONE, monitor)
    return run


def loss_of_eval(run: RunDirectory, *overrides: str, data: Path | None = None) -> float:
    (path,) = checkpoints.committed(run.checkpoints)
    where = None if data is None else str(data)
    folder, recipe, request = resolve(run, path, split=None, overrides=list(overrides), data=where)
    folder.path.mkdir(parents=True, exist_ok=True)
    with RankMonitor(folder, rank=0) as monitor:
        assert evaluate_checkpoint(recipe, folder, request, ALONE, monitor)
    findings = read_findings(folder)
    assert findings is not None
    return findings.metrics["val/loss"]


@pytest.mark.parametrize(
    "loss",
    [
        "{name: cross_entropy, class_weights: [1, 20, 3, 4], label_smoothing: 0.2}",
        "{name: cross_entropy, class_weights: balanced}",
        "{name: bce, pos_weight: [3]}",
        "{name: focal, gamma: 1.5}",
    ],
)
def test_loss_is_that_of_training_with_all_that_the_recipe_adds_to_it(tmp_path: Path, data: Path, loss: str) -> None:
    run = train(tmp_path / "run", data, f"loss={loss}")
    last = run.read_status().last
    assert last is not None
    assert loss_of_eval(run) == last["val/loss"]
    assert loss_of_eval(run, "loss={name: cross_entropy}") != last["val/loss"]


def test_balanced_weights_are_those_of_the_training_samples_whatever_is_evaluated(tmp_path: Path, data: Path) -> None:
    run = train(tmp_path / "run", data, "loss.class_weights=balanced")
    (path,) = checkpoints.committed(run.checkpoints)
    weights = checkpoints.read(path).state["class_weights"]
    with np.load(data) as arrays:
        labels = arrays["train_labels"]
        only_val = {"val_images": arrays["val_images"], "val_labels": arrays["val_labels"]}
        np.savez(
            tmp_path / "other.npz", train_images=arrays["val_images"], train_labels=arrays["val_labels"], **only_val
        )
    assert weights == pytest.approx(len(labels) / (CLASSES * np.bincount(labels)))
    last = run.read_status().last
    assert last is not None
    assert loss_of_eval(run, data=tmp_path / "other.npz") == last["val/loss"]
    state = json.loads((path / "state.json").read_text())
    del state["class_weights"]  # as it was saved before: they are counted again
    (path / "state.json").write_text(json.dumps(state))
    manifest = {**read_manifest(path), **describe_files([path / "state.json"])}
    (path / "MANIFEST.json").write_text(json.dumps({"files": manifest}))
    assert loss_of_eval(run) == last["val/loss"]
