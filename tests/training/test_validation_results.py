"""The newest and the best evaluation of a training have their confusion matrix in the run, whatever was measured."""

import logging
from pathlib import Path

import pytest

from distrain.config import load_recipe
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import read_validations
from distrain.system.files import strict_json
from distrain.training import trainer
from distrain.training.monitor import RankMonitor
from tests.cli_runner import metrics
from tests.training.test_build import ALONE, PROFILE

SETTINGS = [
    "train.epochs=4",
    "data.val_samples=100",
    "eval.metrics=[top1]",
    "log={tensorboard: false, wandb: disabled}",
]


def train(run: RunDirectory, *overrides: str) -> RunDirectory:
    recipe = load_recipe("digits", overrides=[*SETTINGS, *overrides])
    run.create()
    with RankMonitor(run, rank=0) as monitor:
        assert trainer.train(recipe, PROFILE, run, ALONE, monitor)
    return run


def test_newest_and_best_evaluation_have_the_matrix_of_their_metrics(tmp_path: Path) -> None:
    run = train(RunDirectory(tmp_path / "run"), "optimizer.lr=0.5")  # so fast that the best is not the last
    found = {result.step: result for result in read_validations(run)}
    status = run.read_status()
    assert status.best is not None
    assert status.last is not None
    assert found.keys() == {status.best["step"], status.last["step"]}
    recorded = {record["step"]: record for record in metrics(run.path)}
    for step, result in found.items():
        assert result.metrics == {name: recorded[step][name] for name in ("val/loss", "val/top1")}
        matrix = result.read_confusion()
        assert matrix is not None
        assert matrix.counts.sum() == result.num_samples == 100
        assert matrix.counts.trace() / 100 == result.metrics["val/top1"]
        assert matrix.classes == tuple("0123456789")
        assert (result.checkpoint, result.mistakes, result.confusion_image) == ("", (), None)


def test_many_classes_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrain.training.metrics.selection.MAX_CLASSES_COUNTED", 9)
    run = train(RunDirectory(tmp_path / "run"), "train.max_steps=2")
    assert not run.validation.exists()
    assert read_validations(run) == []


def test_matrix_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    (run.path / "recipe.yaml").touch()
    run.validation.write_text(strict_json("in the way"))
    with caplog.at_level(logging.WARNING):
        train(run, "train.max_steps=2")
    warnings = [record.message for record in caplog.records if "confusion" in record.message]
    assert warnings == [f"the confusion matrix of step 2 is not in {run.validation}: Not a directory"]
