"""The table of runs distinguishes them, at any width, and in the requested order."""

import io
import json
import math
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from distrain.cli.run_table import print_runs
from distrain.config import load_recipe
from distrain.errors import RunError
from distrain.runs.checkpoints import final_path
from distrain.runs.directory import RunDirectory
from distrain.runs.labels import Labels, write_labels
from distrain.runs.overview import OWN_KEYS, read_each
from distrain.runs.recipe_values import read_recipe_values
from distrain.runs.sorting import sort_runs
from distrain.runs.status import Job, Status
from tests.cli.test_output import CLASSES, VALUES, make_run
from tests.cli_runner import distrain


def told(runs: list[RunDirectory], root: Path, *, width: int | None = None, columns: tuple[str, ...] = ()) -> list[str]:
    """Return the lines of the table in a pipe, or in a terminal of `width` cells."""
    is_terminal = width is not None
    console = Console(file=io.StringIO(), width=width or 80, force_terminal=is_terminal, no_color=True, _environ={})
    print_runs(console, read_each(runs), root, columns=columns)
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
            Status(last=last, best=None if best is None else {"step": 3, "val/top1": best}),
        )

    runs = [make("b", 0.5, 3.0), make("c", None, math.nan), make("a", 0.75, 2.0), make_run(tmp_path / "d", Status())]
    runs[3].status.write_text("{")  # damaged

    def names(key: str) -> str:
        return "".join(overview.name for overview in sort_runs(read_each(runs), key))

    assert names("start") == "bcad"
    assert names("name") == "abcd"
    assert names("best") == "abcd"
    assert names("loss") == "abcd"
    assert names("val/loss") == "abcd"  # ascending; NaN is no value
    assert names("-val/loss") == "bacd"
    assert names("-best") == "bacd"
    assert names("-start") == "dacb"
    assert names("best.step") == "bacd"
    assert all(len(names(f"{sign}{key}")) == 4 for key in OWN_KEYS for sign in ("", "-"))
    with pytest.raises(RunError, match=r"^--sort bst: no run has this key; did you mean best"):
        sort_runs(read_each(runs), "bst")


def test_columns_show_keys_of_recipe_status_metrics_and_labels_at_any_width(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path)
    write_labels(runs[1], Labels(tags=["good", "v2"], note="corrected"))
    runs[0].metrics.write_text('{"step": 8, "train/loss": 0.75, "train/lr": 0.1}\n{"step": 9, "train/loss": 0.5}\n')
    columns = ("optimizer.lr", "val/top1", "best.val/top1", "best.step", "train/lr", "state", "tags", "note", "time")
    for width in (None, 40):
        header, first, second, other = told(runs, tmp_path, width=width, columns=columns)
        assert header.split() == ["run", *columns]
        assert first.split()[:6] == [runs[0].path.name, "0.1", "75.00%", "87.50%", "6", "0.1"]
        assert first.split()[6:] == ["finished", "-", "-", "0.0", "s"]
        assert second.split()[5:] == ["-", "finished", "good", "v2", "corrected", "0.0", "s"]
        assert other.split()[:2] == ["cifar", "0.1"]
    with pytest.raises(RunError, match=r"^--columns optimizer.lrr: no run has this key; did you mean optimizer.lr"):
        told(runs, tmp_path, columns=("optimizer.lrr",))


def test_json_with_columns_has_the_run_and_these_keys(tmp_path: Path) -> None:
    make_sweep(tmp_path / "runs")
    listed = distrain("runs", "--json", "--columns=val/top1, train.seed,eta_s", "--sort=-optimizer.lr", cwd=tmp_path)
    assert json.loads(listed.out) == [
        {"run": f"runs/{name}", "val/top1": 0.75, "train.seed": 0, "eta_s": None}
        for name in ("digits-20261126-181224-3478", "digits-20261126-181210-36f6", "cifar")
    ]


def test_sections_of_a_recipe_are_read_as_the_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CLASSES)
    for text in (
        load_recipe("cifar10", overrides=["augment.train=[{RandomCrop: {size: 32, padding: 4}}]"]).to_yaml(),
        "# hand-written\nname: x  # a comment\n\ntrain: {epochs: 3,\n  seed: 1}\n# more\n",
        "model:\n  name: 'a\n\n    b'\nname: x\n",
        "base: &b\n  lr: 1\noptimizer: *b\nmore:\n- 1\n- 2\ntext: |\n  a: b\n\n  c\n",
        "---\nname: x\n...\n",
        "text:\n  first\n  second\nlist:\n  - a\n  - b\n",
        "deep:\n  a:\n    b: 1\n    c: [1,\n    2]\n  d: |\n    e: f\n\n    g\n  # h\n",
        "flow:\n  {a: 1,\n  b: 2}\nlink:\n  a: &x 1\n  b: *x\nnone:\n'quoted':\n  a: {}\n  b: 'c\n\n    d'\n",
        "wide:\n    a: 1\n    b:\n        c: 2\n    d: 3\n",
    ):
        run.recipe.write_text(text)
        tree = yaml.safe_load(text)
        for key, value in read_recipe_values(run).items():
            found = tree
            for part in key.split("."):
                found = found[part]
            assert found == value
        assert {key.partition(".")[0] for key in read_recipe_values(run)} == tree.keys()
