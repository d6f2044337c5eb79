"""The best evaluation of a run is one of the trained network, and has a checkpoint."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.errors import RunError
from distrain.runs import checkpoints
from distrain.runs.checkpoints.integrity import describe_files, read_manifest
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Status
from distrain.training import trainer
from distrain.training.loggers.jsonl import rewind_metrics
from distrain.training.monitor import RankMonitor
from tests.cli_runner import checkpoint_steps, metrics

evaluations: list[torch.Tensor] = []


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy in training; an evaluation gives more than the one before it, and so is never better."""
    found = nn.functional.cross_entropy(logits, targets)
    if logits.requires_grad:
        return found
    evaluations.append(found)
    return found * 0 + len(evaluations)


def unsound_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy in training; the first evaluation is finite, the second gives NaN, those after it infinity."""
    found = nn.functional.cross_entropy(logits, targets)
    if logits.requires_grad:
        return found
    evaluations.append(found)
    return found * (1.0 if len(evaluations) == 1 else math.nan if len(evaluations) == 2 else math.inf)


class WithBadImages(Dataset[tuple[torch.Tensor, int]]):
    """Random images; two of the validation have a value that is not finite."""

    classes = ("even", "odd")

    def __init__(self, split: str, path: str | None = None) -> None:
        self.bad = (5, 40) if split == "val" else ()

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index))
        return image.index_fill(2, torch.tensor([0]), math.nan if index in self.bad else 0.0), index % 2


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


UNSOUND = [f"loss={{name: '{__name__}:unsound_loss'}}", "eval={best: top1, every_epochs: null, every_steps: 3}"]


def read_strictly(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_evaluation_that_is_not_finite_is_warned_of_and_never_the_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluations.clear()
    ended = train(tmp_path, *UNSOUND, "train={epochs: 3}", "checkpoint={keep_last: 9, every_steps: 3}")
    assert ended.best is not None
    assert ended.best["step"] == 3
    assert ended.last is not None
    assert math.isnan(ended.last["val/loss"])
    assert ended.last["val/top1"] > 0
    warnings = [words for words in caplog.messages if words.startswith("the validation loss at step ")]
    assert len(warnings) == 1
    assert warnings[0].startswith("the validation loss at step 6 is nan")
    assert "the images are finite; check the targets, and the loss and network in evaluation mode" in warnings[0]
    for path in (tmp_path / "status.json", *tmp_path.glob("checkpoints/*/state.json")):
        read_strictly(path.read_text())
    lines = (tmp_path / "metrics.jsonl").read_text()
    found = [read_strictly(line) for line in lines.splitlines()]
    assert [record["val/loss"] for record in found if "val/loss" in record][1:] == [None] * 3
    rewind_metrics(RunDirectory(tmp_path), 99)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    read = [record["val/loss"] for record in RunDirectory(tmp_path).read_metrics() if "val/loss" in record]
    assert [math.isnan(value) for value in read] == [False, True, True, True]


def test_validation_images_that_are_not_finite_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = f"data={{source: '{__name__}:WithBadImages', batch_size: 16}}"
    train(tmp_path, data, "augment={train: []}", "eval={batch_size: 16}", "train={epochs: 1, max_steps: 3}")
    (warning,) = [words for words in caplog.messages if words.startswith("the validation loss at step ")]
    source = f"{__name__}:WithBadImages"
    assert f"in the pixels of sample 5 of {source}, sample 40 of {source} there are values" in warning


def test_run_without_a_finite_evaluation_runs_out_of_patience_and_has_no_best(tmp_path: Path) -> None:
    evaluations[:] = [torch.zeros(())]
    ended = train(tmp_path, *UNSOUND, "train={epochs: 9, patience: 2}")
    assert ended.best is None
    assert ended.step == ended.total_steps == 2 * 3
    entries = checkpoints.read_catalog(tmp_path / "checkpoints")
    assert [entry.score for entry in entries] == [None]
    with pytest.raises(RunError, match=r"no checkpoint in .* had a finite evaluation, so there is no best one"):
        checkpoints.choose(tmp_path / "checkpoints", "best")
