"""Compared runs show every value in which recipes and environments differ, and what each run has reached."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distrain.cli.run_comparison import print_comparison
from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.errors import RunError
from distrain.runs.comparison import MAX_RUNS, compare, find_best_columns
from distrain.runs.directory import RunDirectory
from distrain.runs.environment import describe_environment
from distrain.runs.status import Attempt
from tests.cli.test_output import CLASSES, make_run
from tests.cli_runner import distrain


def make(root: Path, name: str, *, lr: float = 0.1, top1: float = 0.75, **environment: Any) -> RunDirectory:
    """Make a run with the files that a launcher writes: this environment, changed by some of its values."""
    attempt = Attempt(started=1.0, host=name, pid=1, world_size=2, first_step=0, last_step=9, state="finished")
    last = {"step": 9, "val/loss": 0.5, "val/top1": top1}
    run = make_run(root / name, CLASSES.model_copy(update={"last": last, "attempts": [attempt]}))
    run.recipe.write_text(load_recipe("digits", overrides=[f"optimizer.lr={lr}"]).to_yaml())
    run.profile.write_text(Profile(launcher="torchrun", device="cpu", processes=2, threads=1).to_yaml())
    run.environment.write_text(json.dumps({**describe_environment(), "git": None, **environment}))
    return run


def printed(runs: list[RunDirectory], width: int | None = None) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width or 80, force_terminal=width is not None, no_color=True, _environ={})
    print_comparison(console, compare(runs))
    return file.getvalue()


def test_only_what_differs_in_recipe_and_environment_is_listed(tmp_path: Path) -> None:
    gpu = {"uuid": "1", "name": "H100", "memory_gib": 79.6}
    git = {"sha": "abc", "diff": ""}
    first = make(tmp_path, "first", git=git, gpus=[gpu, {**gpu, "uuid": "2"}])
    second = make(tmp_path, "second", lr=0.2, git={**git, "diff": "+x"}, host="elsewhere", gpus=[{**gpu, "uuid": "3"}])
    found = compare([first, second])
    assert found.recipe == {"optimizer.lr": [0.1, 0.2]}
    assert found.environment.keys() == {"git_diff", "gpus"}
    assert found.environment["gpus"] == ["2 x H100 (79.6 GiB)", "1 x H100 (79.6 GiB)"]
    assert found.environment["git_diff"][0] is None
    same = compare([make(tmp_path, "a"), make(tmp_path, "b")])
    assert (same.recipe, same.environment) == ({}, {})
    assert "no differences in the recipe" in printed([first, make(tmp_path, "again", git=git, gpus=[gpu])])


def test_run_without_environment_or_evaluation_has_no_values_there(tmp_path: Path) -> None:
    runs = [make(tmp_path, "first"), make(tmp_path, "second")]
    runs[1].environment.unlink()
    runs[1].profile.unlink()
    runs[1].status.unlink()
    found = compare(runs)
    assert found.environment["torch"][1] is None
    assert found.environment["processes"] == ["2", None]
    assert found.metrics["val/top1"] == [0.75, None]
    assert found.metrics["state"] == ["finished", "never started"]


@pytest.mark.parametrize(
    ("key", "values", "best"),
    [
        ("val/top1", [0.5, 0.75, None, 0.75], [1, 3]),
        ("best.val/loss", [0.5, 0.25], [1]),
        ("val/loss", [math.nan, 0.25, 0.5], [1]),
        ("val/loss", [0.5, 0.5], []),
        ("train/loss", [0.5, 0.25], []),
        ("step", [1, 2], []),
    ],
)
def test_best_values_of_evaluations_are_marked(key: str, values: list[float | None], best: list[int]) -> None:
    assert find_best_columns(key, values) == best


def test_twenty_runs_are_shown_in_parts_that_fit_the_terminal(tmp_path: Path) -> None:
    runs = [make(tmp_path, f"run-{number}", lr=number + 1, top1=number / 50) for number in range(MAX_RUNS)]
    piped = printed(runs).splitlines()
    rates = [f"{number + 1}" for number in range(MAX_RUNS)]
    assert next(line for line in piped if line.startswith("optimizer.lr")).split()[1:] == rates
    lines = printed(runs, width=60).replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert all(len(line) <= 60 for line in lines)
    shown = [word for line in lines if line.startswith("optimizer.lr") for word in line.split()[1:]]
    assert shown == rates
    assert "38.00% *" in "\n".join(lines)
    for wrong in (runs[:1], [*runs, make(tmp_path, "more")]):
        with pytest.raises(RunError, match=f"^compare takes 2 to 20 different runs, not {len(wrong)}$"):
            compare(wrong)


def test_comparison_as_json_has_a_value_of_each_run_by_key(tmp_path: Path) -> None:
    make(tmp_path / "runs", "first")
    make(tmp_path / "runs", "second", lr=0.2, top1=0.5)
    found = json.loads(distrain("runs", "compare", "first", "second", "--json", cwd=tmp_path).out)
    assert [run["run"] for run in found["runs"]] == ["runs/first", "runs/second"]
    assert found["recipe"] == {"optimizer.lr": [0.1, 0.2]}
    assert found["metrics"]["val/top1"] == [0.75, 0.5]
    unreadable = make(tmp_path / "runs", "third")
    unreadable.status.write_text("{")
    refused = distrain("runs", "compare", "first", "third", cwd=tmp_path)
    assert refused.code == 2
    assert refused.err.startswith("distrain: run third cannot be read: ")
