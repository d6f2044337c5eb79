"""What is read off a run: metrics as columns, events, how it is shown."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distrain
from distrain.api.events import RunEvent, RunWatch
from distrain.api.metrics import read_metrics
from distrain.api.progress import describe_progress
from distrain.config import load_recipe
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Status


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "<b>one")
    run.create()
    run.recipe.write_text(load_recipe("digits", overrides=[]).to_yaml())
    run.write_status(Status(state="stopped", step=20, total_steps=40, epoch=1.0))
    record(run, step=10, epoch=0.5, time=1.0, **{"train/loss": 2.0})
    record(run, step=20, epoch=1.0, time=2.0, **{"train/loss": 1.0, "val/loss": 1.5, "val/top1": None})
    return run


def record(run: RunDirectory, **values: Any) -> None:
    with run.metrics.open("a") as file:
        file.write(json.dumps(values) + "\n")


def test_metrics_are_columns_of_one_length(run: RunDirectory) -> None:
    metrics = read_metrics(run)
    assert list(metrics) == ["step", "epoch", "time", "train/loss", "val/loss", "val/top1"]
    assert metrics["step"].tolist() == [10, 20]
    assert metrics["epoch"].tolist() == [0.5, 1.0]
    assert metrics["train/loss"].tolist() == [2.0, 1.0]
    np.testing.assert_array_equal(metrics["val/loss"], [np.nan, 1.5])
    steps, values = metrics.curve("val/top1")
    np.testing.assert_array_equal((steps, values), ([20], [np.nan]))
    table = metrics.to_pandas()
    assert table.loc[20, "train/loss"] == 1.0
    assert table.shape == (2, 5)
    with pytest.raises(KeyError, match="did you mean val/loss"):
        _ = metrics["val/los"]
    with pytest.raises(KeyError, match="no metric"):
        metrics.curve("other")


def test_run_without_metrics_has_empty_columns(tmp_path: Path) -> None:
    metrics = read_metrics(RunDirectory(tmp_path))
    assert [len(metrics[name]) for name in metrics] == [0, 0, 0]
    assert len(metrics.to_pandas()) == 0


def test_events_are_what_is_new(run: RunDirectory) -> None:
    found: list[RunEvent] = []
    watch = RunWatch(run, found.append)
    watch.poll()
    assert found == []
    run.write_status(Status(state="running", step=21, total_steps=40))
    record(run, step=20, epoch=1.0, time=3.0, **{"train/loss": 1.0})  # repeated after a resume
    record(run, step=30, epoch=1.5, time=4.0, **{"train/loss": 0.5, "val/loss": 0.7})
    (run.checkpoints / "step-00000030").mkdir()
    watch.poll()
    watch.poll()
    assert [(event.kind, event.step, event.state) for event in found] == [
        ("record", 30, "running"),
        ("evaluation", 30, "running"),
        ("checkpoint", 30, "running"),
        ("state", 21, "running"),
    ]
    assert found[1].metrics == {"train/loss": 0.5, "val/loss": 0.7}
    assert found[2].checkpoint == run.checkpoints / "step-00000030"


def test_event_function_that_raises_is_reported_once(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    calls = 0

    def fail(_: RunEvent) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("my mistake")

    watch = RunWatch(run, fail)
    for step in (30, 40):
        record(run, step=step, epoch=2.0, time=4.0, **{"train/loss": 0.5})
        watch.poll()
    assert calls == 1
    assert capsys.readouterr().err == "note: on_event is not called again: it has raised ValueError: my mistake\n"


def test_line_of_a_run_fits(run: RunDirectory) -> None:
    recipe = load_recipe("digits", overrides=[])
    assert describe_progress(run, recipe, 200).startswith("<b>one  ")
    assert "stopped  epoch 1/15  step 20/40  loss 1.0000" in describe_progress(run, recipe, 200)
    assert len(describe_progress(run, None, 40)) <= 40


def test_html_of_a_run_is_escaped_and_has_its_curves(run: RunDirectory) -> None:
    html = distrain.open_run(run.path)._repr_html_()
    assert "<b>one" not in html
    assert "&lt;b&gt;one" in html
    assert "<script" not in html
    assert html.count('class="line') == 2  # the losses
    assert "Stopped: no step was trained yet." in html


def test_html_of_a_comparison_names_what_differs(run: RunDirectory, tmp_path: Path) -> None:
    other = RunDirectory(tmp_path / "runs" / "two")
    other.create()
    other.recipe.write_text(load_recipe("digits", overrides=["optimizer.lr=0.5"]).to_yaml())
    other.write_status(Status(state="finished", step=40, total_steps=40))
    comparison = distrain.compare_runs(run.path, distrain.open_run(other.path))
    assert [each.name for each in comparison.runs] == ["<b>one", "two"]
    assert list(comparison.recipe) == ["optimizer.lr"]
    assert comparison.metrics["state"] == ["stopped", "finished"]
    html = comparison._repr_html_()
    assert "&lt;b&gt;one" in html
    assert "<b>one" not in html
    assert "optimizer.lr" in repr(comparison)
    assert "<td>0.5</td>" in html


def test_runs_are_filtered_and_sorted(run: RunDirectory, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert [each.name for each in distrain.list_runs("state=stopped", root=root)] == [run.path.name]
    assert distrain.list_runs(["state=stopped", "step>20"], sort="-step", root=root) == []
    with pytest.raises(distrain.errors.RunError, match="filter staet: no run has this key; did you mean state"):
        distrain.list_runs("staet=stopped", root=root)
    assert repr(distrain.open_run("<b>", root)) == "Run(<b>one: stopped, step 20 of 40)"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
