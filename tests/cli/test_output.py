"""A run is described by its own metric, whatever kind of target it trains on."""

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distrain.cli import output
from distrain.cli.json_output import print_json
from distrain.config.profile import Profile
from distrain.runs.checkpoints import final_path
from distrain.runs.directory import RunDirectory
from distrain.runs.overview import read_each
from distrain.runs.query import resume_command
from distrain.runs.status import SkippedBatch, Status

CLASSES = Status(
    state="finished",
    step=9,
    total_steps=9,
    last={"step": 9, "val/loss": 0.5, "val/top1": 0.75, "val/top5": 1.0},
    best={"step": 6, "val/loss": 0.4, "val/top1": 0.875},
)
VALUES = Status(
    state="finished",
    step=9,
    total_steps=9,
    best_by="mae",
    last={"step": 9, "val/loss": 0.25, "val/mae": 12.3456},
    best={"step": 3, "val/loss": 0.2, "val/mae": 11.0},
)
ONLY_NAN = Status(state="finished", step=9, total_steps=9, last={"step": 9, "val/loss": math.nan, "val/top1": 0.1})
BY_LOSS = VALUES.model_copy(update={"best_by": "loss"})


def test_json_for_scripts_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": (math.inf, 0.5)})
    print_json(ONLY_NAN)
    first, _, second = capsys.readouterr().out.partition("\n}\n")
    assert json.loads(first + "}") == {"loss": [None, 0.5]}
    assert "NaN" not in second
    assert json.loads(second)["last"] == {"step": 9, "val/loss": None, "val/top1": 0.1}


def make_run(path: Path, status: Status) -> RunDirectory:
    run = RunDirectory(path)
    run.create()
    run.recipe.touch()
    run.write_status(status)
    if status.best is not None:
        final_path(run.checkpoints, int(status.best["step"])).mkdir()
    return run


def summary(run: RunDirectory) -> dict[str, Any]:
    return read_each([run])[0].summary()


def run_with(path: Path, status: Status, values: list[float]) -> RunDirectory:
    """Make a run that has recorded these values of its metric."""
    run = make_run(path, status)
    records = [{"step": i, "val/loss": 0.0, f"val/{status.best_by}": value} for i, value in enumerate(values)]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def told(tell: str, *arguments: object, width: int | None = None) -> list[str]:
    """Return the lines that one of the report's functions prints to a pipe, or to a terminal of `width` cells."""
    is_terminal = width is not None
    console = Console(
        file=io.StringIO(),
        width=width or 80,
        force_terminal=is_terminal,
        no_color=True,
        highlight=False,
        soft_wrap=True,
    )
    getattr(output, tell)(console, *arguments)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (CLASSES, "finished  top-1 75.00% (best 87.50% at step 6), validation loss 0.5000"),
        (VALUES, "finished  MAE 12.35 (best 11 at step 3), validation loss 0.2500"),
        (BY_LOSS, "finished  val loss 0.2500 (best 0.2000 at step 3)"),
        (ONLY_NAN, "finished  top-1 10.00%, validation loss nan"),
    ],
)
def test_summary_names_the_metric_that_selects_the_best(tmp_path: Path, status: Status, line: str) -> None:
    lines = told("print_summary", make_run(tmp_path / "run", status), status)
    assert lines[:2] == [line, "trained   9 steps in 0.0 s"]


def test_summary_names_tensorboard_only_where_there_is_something_for_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CLASSES)
    assert not any("tensorboard --logdir" in line for line in told("print_summary", run, CLASSES))
    run.tensorboard.mkdir()
    assert told("print_summary", run, CLASSES)[-1] == f"          tensorboard --logdir {run.tensorboard}"


def test_evaluation_without_a_checkpoint_is_not_called_the_best(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CLASSES)
    assert summary(run)["best_checkpoint"] == str(final_path(run.checkpoints, 6))
    assert "best        top-1 87.50% at step 6" in told("print_run", run)
    final_path(run.checkpoints, 6).rmdir()
    assert summary(run)["best_checkpoint"] is None
    line = "finished  top-1 75.00% (87.50% at step 6, which has no checkpoint), validation loss 0.5000"
    assert told("print_summary", run, CLASSES)[0] == line
    assert "best        not kept: top-1 87.50% at step 6 has no checkpoint" in told("print_run", run)


@pytest.mark.parametrize(("classes", "shown"), [(3, 3), (21, 20)])
def test_summary_lists_each_class_or_the_lowest_of_many(tmp_path: Path, classes: int, shown: int) -> None:
    last = {"step": 9.0, "val/loss": 0.5, "val/top1": 0.5}
    last |= {f"val/top1/[b]{i}": 1 - i / 100 for i in range(classes)}
    status = CLASSES.model_copy(update={"last": last})
    lines = told("print_summary", make_run(tmp_path / "run", status), status)
    table = [line.split() for line in lines if line.startswith("  [b]")]
    assert len(table) == shown
    assert ["[b]2", "98.00%"] in table
    assert (["[b]0", "100.00%"] in table) is (shown == classes)


def test_run_that_died_a_moment_ago_is_not_called_running(tmp_path: Path) -> None:
    status = Status()
    status.begin_attempt(world_size=1, first_step=0)
    status.state = status.attempts[-1].state = "running"
    status.heartbeat, status.eta_s = time.time(), 45.0
    run = make_run(tmp_path / "run", status)
    lines = told("print_run", run)
    assert lines[0] == "run  died"
    assert (summary(run)["state"], summary(run)["eta_s"]) == ("died", None)
    assert any(line.startswith("attempt 1   died, steps 0 to 0") for line in lines)


@pytest.mark.parametrize(
    ("status", "values", "line"),
    [
        (CLASSES, [0.98, 0.99, 1.0], "top-1       ▁▅█  (98.00% to 100.00%, 3 evaluations)"),
        (VALUES, [8.0, math.nan, 4.0], "MAE         █ ▁  (4 to 8, 3 evaluations)"),
        (VALUES, [8.0], "MAE         ▁  (8, 1 evaluation)"),
        (VALUES, [math.nan], "MAE            (nan, 1 evaluation)"),
    ],
)
def test_curve_reaches_over_all_values(tmp_path: Path, status: Status, values: list[float], line: str) -> None:
    assert line in told("print_run", run_with(tmp_path / "run", status, values))


@pytest.mark.parametrize(("width", "cells"), [(60, 60), (None, 143)])
def test_curve_of_many_values_shows_all_of_them_in_one_line(tmp_path: Path, width: int | None, cells: int) -> None:
    run = run_with(tmp_path / "run", VALUES, [float(i) for i in range(1000)])
    (line,) = (line for line in told("print_run", run, width=width) if line.startswith("MAE"))
    bars = line.split()[1]
    assert line == f"MAE         {bars}  (0 to 999, 1,000 evaluations)"
    assert len(line) == cells
    assert list(bars) == sorted(bars)
    assert (bars[0], bars[-1]) == ("▁", "█")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"launcher": "inprocess"}, "distrain resume {run}"),
        ({"launcher": "torchrun", "processes": 8, "device": "cuda"}, "distrain resume {run}"),
        ({"launcher": "slurm", "nodes": 2, "processes": 4}, "distrain resume {run}"),
        (
            {"launcher": "torchrun", "nodes": 2, "processes": 4, "rendezvous": "n0:29400"},
            "distrain fit --run {run} --nodes 2 --node-rank 1 --rendezvous n0:29400 --procs 4",
        ),
        (
            {"launcher": "accelerate", "nodes": 4, "min_nodes": 2, "device": "cuda", "rendezvous": "n0:29400"},
            "distrain fit --run {run} --nodes 2:4 --node-rank 1 --rendezvous n0:29400 --gpus 1 --launcher accelerate",
        ),
    ],
)
def test_command_resumes_a_run_on_the_processes_that_it_had(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    run = RunDirectory(tmp_path / "a run", node_rank=1)
    run.create()
    profile = Profile.model_validate({"device": "cpu", "processes": 1, "threads": 1, **fields})
    run.profile.write_text(profile.to_yaml())
    assert resume_command(run) == words.format(run=f"'{run.path}'")


def test_rollbacks_are_printed_with_their_steps(tmp_path: Path) -> None:
    skipped = [SkippedBatch(step=step, cause="the loss") for step in (2, 7)]
    run = make_run(tmp_path / "run", CLASSES.model_copy(update={"skipped_batches": skipped}))
    assert json.loads(run.status.read_text())["rollbacks"] == 2
    assert "rollbacks   2, each skipping a batch: step 2, 7" in told("print_run", run)
