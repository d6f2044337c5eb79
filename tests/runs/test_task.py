"""The task of a worker is one typed file; folders of earlier versions are still understood."""

import json
from pathlib import Path
from typing import get_args

import pytest

from distrain.errors import RunError
from distrain.runs.directory import RunDirectory
from distrain.runs.task import (
    BenchmarkRequest,
    EvaluationRequest,
    Task,
    TaskName,
    TrainRequest,
    read_task,
    saves_nothing,
    write_task,
)
from distrain.worker import TASKS


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


@pytest.mark.parametrize(
    "task",
    [
        TrainRequest(),
        EvaluationRequest(run="/runs/a", checkpoint="/runs/a/checkpoints/step-00000010", split="given"),
        BenchmarkRequest(steps=3, has_parts=True),
    ],
)
def test_task_is_read_back_with_its_request(run: RunDirectory, task: Task) -> None:
    write_task(run, task)
    assert read_task(run) == task
    assert saves_nothing(run) == (task.task != "train")


def test_worker_knows_every_task() -> None:
    assert set(TASKS) == set(get_args(TaskName))


def test_run_of_an_earlier_version_without_a_task_is_trained(run: RunDirectory) -> None:
    assert read_task(run) == TrainRequest()
    assert not saves_nothing(run)


def test_evaluation_of_an_earlier_version_is_recognised(run: RunDirectory) -> None:
    request = {"run": "/runs/a", "checkpoint": "/runs/a/checkpoints/step-00000010", "split": "val"}
    (run.path / "examination.json").write_text(json.dumps(request))
    assert read_task(run) == EvaluationRequest(**request)


def test_damaged_task_is_refused_with_its_file(run: RunDirectory) -> None:
    run.task.write_text('{"task": "dance"}')
    with pytest.raises(RunError, match=r"task\.json"):
        read_task(run)
