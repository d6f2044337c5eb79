"""Finished evaluations of a run are read whatever else is in their folder; damaged ones are skipped."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import EvaluationResult, read_evaluations, read_findings

CONFUSION = np.array([[3, 1], [0, 2]])
OF_EARLIER_VERSIONS: dict[str, Any] = {
    "run": "/runs/digits",
    "checkpoint": "/runs/digits/checkpoints/step-00000046",
    "step": 46,
    "weights": "trained",
    "split": "val",
    "data": None,
    "target": "class",
    "num_samples": 6,
    "metrics": {"val/loss": None, "val/top1": 5 / 6},
    "classes": [
        {"name": name, "samples": samples, "accuracy": 0.5, "precision": None, "f1": 0.5}
        for name, samples in (("\udcffcat", 4), ("<b>", 2))
    ],
    "mistakes": [
        {"sample": f"{number}.jpg", "index": number, "target": "<b>", "prediction": "cat", "badness": badness}
        for number, badness in enumerate((None, 0.9, 0.8, 0.7))
    ],
}


def write(run: RunDirectory, name: str, *, made: float = 100, changes: dict[str, Any] | None = None) -> RunDirectory:
    folder = RunDirectory(run.evaluations / name)
    folder.path.mkdir(parents=True)
    np.savez_compressed(folder.answers, confusion=CONFUSION)
    folder.findings.write_text(json.dumps(OF_EARLIER_VERSIONS | (changes or {})))
    os.utime(folder.findings, (made, made))
    return folder


def confusion(result: EvaluationResult) -> tuple[tuple[str, ...], list[list[int]]] | None:
    matrix = result.read_confusion()
    return None if matrix is None else (matrix.classes, matrix.counts.tolist())


def test_run_without_evaluations_has_none(tmp_path: Path) -> None:
    assert read_evaluations(RunDirectory(tmp_path)) == []
    (tmp_path / "evaluations").touch()
    assert read_evaluations(RunDirectory(tmp_path)) == []


def test_evaluations_are_read_newest_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for name, made in (("old", 100.5), ("new", 300), ("middle", 200)):
        write(run, name, made=made)
    found = read_evaluations(run)
    assert [(result.name, result.made) for result in found] == [("new", 300), ("middle", 200), ("old", 100.5)]
    result = found[0]
    assert (result.path, result.step, result.split) == (run.evaluations / "new", 46, "val")
    assert result.metrics["val/top1"] == 5 / 6
    assert np.isnan(result.metrics["val/loss"])
    assert [row.name for row in result.classes] == ["\udcffcat", "<b>"]
    assert confusion(result) == (("\udcffcat", "<b>"), CONFUSION.tolist())
    assert [(mistake.badness, mistake.image) for mistake in result.mistakes[:2]] == [(np.inf, None), (0.9, None)]
    assert (result.confusion_image, result.mistakes_image) == (None, None)


def test_only_images_below_the_evaluation_are_named(tmp_path: Path) -> None:
    (tmp_path / "secret.png").touch()
    names = ["mistakes/000.png", "mistakes/001.png", "../../../secret.png", str(tmp_path / "secret.png")]
    mistakes = [mistake | {"image": name} for mistake, name in zip(OF_EARLIER_VERSIONS["mistakes"], names, strict=True)]
    folder = write(RunDirectory(tmp_path), "pictured", changes={"mistakes": mistakes})
    folder.mistake_images.mkdir()
    for picture in (folder.mistake_image(0), folder.confusion_image):
        picture.touch()
    (result,) = read_evaluations(RunDirectory(tmp_path))
    assert [mistake.image for mistake in result.mistakes] == ["mistakes/000.png", None, None, None]
    assert (result.confusion_image, result.mistakes_image) == (folder.confusion_image, None)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"text"', "\0", json.dumps(OF_EARLIER_VERSIONS)[:-200], '{"step": 1}']
)
def test_damaged_findings_are_skipped(tmp_path: Path, text: str) -> None:
    run = RunDirectory(tmp_path)
    write(run, "good")
    damaged = write(run, "damaged")
    damaged.findings.write_text(text)
    write(run, "unfinished").findings.unlink()
    write(run, "folder").findings.unlink()
    (run.evaluations / "folder" / "findings.json").mkdir()
    (run.evaluations / "file").touch()
    assert [result.name for result in read_evaluations(run)] == ["good"]
    assert read_findings(damaged) is None


@pytest.mark.parametrize("keep", [0, 1, 30, 100, -1])
def test_damaged_answers_have_no_matrix(tmp_path: Path, keep: int) -> None:
    folder = write(RunDirectory(tmp_path), "damaged")
    folder.answers.write_bytes(folder.answers.read_bytes()[:keep])
    (result,) = read_evaluations(RunDirectory(tmp_path))
    assert result.read_confusion() is None
    with folder.answers.open("wb") as file:
        np.save(file, CONFUSION)
    assert result.read_confusion() is None
    folder.answers.unlink()
    assert result.read_confusion() is None


@pytest.mark.parametrize(
    "matrix", [np.zeros((3, 3), dtype=np.int64), np.zeros(4), np.zeros((2, 2)), np.array([[None, {}], ["", 1]])]
)
def test_matrix_that_does_not_fit_the_classes_or_is_pickled_is_not_read(tmp_path: Path, matrix: Any) -> None:
    folder = write(RunDirectory(tmp_path), "other")
    np.savez_compressed(folder.answers, confusion=matrix)
    assert read_evaluations(RunDirectory(tmp_path))[0].read_confusion() is None


def test_values_and_labels_have_no_matrix(tmp_path: Path) -> None:
    write(RunDirectory(tmp_path), "values", changes={"target": "values", "classes": []})
    assert read_evaluations(RunDirectory(tmp_path))[0].read_confusion() is None
