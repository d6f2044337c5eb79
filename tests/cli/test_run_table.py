"""The table of runs distinguishes them, at any width, and in the requested order."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from distrain.cli.run_table import SORT_KEYS, print_runs, sort_runs
from distrain.config import load_recipe
from distrain.errors import RunError
from distrain.runs.checkpoints import final_path
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Job, Status
from tests.cli.test_output import CLASSES, VALUES, make_run


def told(runs: list[RunDirectory], root: Path, *, width: int | None = None) -> list[str]:
    """Return the lines of the table in a pipe, or in a terminal of `width` cells."""
    is_terminal = width is not None
    console = Console(file=io.StringIO(), width=width or 80, force_terminal=is_terminal, no_color=True, _environ={})
    print_runs(console, runs, root)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()


def make_sweep(root: Path, status: Status = CLASSES) -> list[RunDirectory]:
    """Make two runs of one recipe with long names, and one of another recipe."""
    runs = []
    for name, recipe, overrides in (
        ("digits-20261126-181210-36f6", "digits", ["optimizer.lr=0.1"]),
        ("digits-20261126-181224-3478", "digits", ["optimizer.lr=0.2", "log.tensorboard=false"]),
        ("cifar", "cifar10", []),
    ):
        run = make_run(root / name, status)
        run.recipe.write_text(load_recipe(recipe, overrides=overrides).to_yaml())
        runs.append(run)
    return runs


def test_runs_with_one_metric_have_it_as_their_heading_and_others_beside_each_number(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "classes", CLASSES), make_run(tmp_path / "waiting", Status(best_by="mae"))]
    runs[1].write_job(Job(id="1"))
    header, first, waiting = told(runs, tmp_path)
    assert header.split() == ["run", "state", "step", "top-1", "best", "val", "loss", "time", "recipe"]
    assert first.split()[3:6] == ["75.00%", "87.50%", "0.5000"]
    assert waiting.split()[3:6] == ["-", "-", "-"]
    runs.append(make_run(tmp_path / "values", VALUES))
    header, first, _, last = told(runs, tmp_path)
    assert header.split()[:5] == ["run", "state", "step", "newest", "best"]
    assert first.split()[3:8] == ["top-1", "75.00%", "top-1", "87.50%", "0.5000"]
    assert last.split()[3:8] == ["MAE", "12.35", "MAE", "11", "0.2500"]


def test_key_under_its_old_name_is_not_a_difference_between_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, CLASSES) for name in ("old", "new")]
    text = load_recipe("digits", overrides=[]).to_yaml()
    runs[0].recipe.write_text(text.replace("  cache: auto\n", "  hold: auto\n"))
    runs[1].recipe.write_text(text)
    assert "hold: auto" in runs[0].recipe.read_text()
    assert "differs" not in told(runs, tmp_path)[0]


def test_evaluation_without_a_checkpoint_is_not_listed_as_the_best(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CLASSES)
    final_path(run.checkpoints, 6).rmdir()
    assert told([run], tmp_path)[1].split()[3:5] == ["75.00%", "-"]


def test_pipe_gets_every_column_untruncated_and_a_terminal_those_that_fit(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path)
    header, first, second, other = told(runs, tmp_path)
    assert header.split()[-4:] == ["time", "recipe", "differs", "in"]
    assert first.endswith("0.5000  0.0 s  digits   optimizer.lr=0.1")
    assert second.endswith("0.5000  0.0 s  digits   optimizer.lr=0.2")  # and not in what is logged
    assert other.split() == ["cifar", "finished", "9/9", "75.00%", "87.50%", "0.5000", "0.0", "s", "cifar10"]
    header, first, *_ = told(runs, tmp_path, width=80)
    assert header.split() == ["run", "state", "step", "top-1", "best", "differs", "in"]
    assert first.split() == [runs[0].path.name, "finished", "9/9", "75.00%", "87.50%", "optimizer.lr=0.1"]
    for width in (40, 60, 80, 120):
        lines = told(runs, tmp_path, width=width)
        assert len(lines) == 4
        assert all(len(line) <= max(width, 46) for line in lines)  # run, state and step always stay
        assert all(run.path.name in line for run, line in zip(runs, lines[1:], strict=True))


def test_runs_are_sorted_as_requested_and_those_without_a_value_come_last(tmp_path: Path) -> None:
    def make(name: str, best: float | None, loss: float) -> RunDirectory:
        last = {"step": 9, "val/loss": loss, "val/top1": 0.5}
        return make_run(
            tmp_path / name,
            Status(last=last, best=None if best is None else {"step": 3, "val/top1": best}, train_seconds=loss),
        )

    runs = [make("b", 0.5, 3.0), make("c", None, math.nan), make("a", 0.75, 2.0), make_run(tmp_path / "d", Status())]
    runs[3].status.write_text("{")  # damaged

    def names(key: str) -> str:
        return "".join(run.path.name for run in sort_runs(runs, key))

    assert names("start") == "bcad"
    assert names("name") == "abcd"
    assert names("best") == "abcd"
    assert names("loss") == "abcd"
    assert all(len(names(key)) == 4 for key in SORT_KEYS)
    with pytest.raises(RunError, match=r"^--sort bst: runs are sorted by start, .* or time$"):
        sort_runs(runs, "bst")
