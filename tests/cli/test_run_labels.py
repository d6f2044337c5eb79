"""Runs are tagged, noted, filtered and moved to the trash, and a run in use is never removed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distrain.errors import RunError
from distrain.runs.directory import RunDirectory
from distrain.runs.filters import matching
from distrain.runs.labels import Labels, read_labels, write_labels
from distrain.runs.overview import read_each
from distrain.runs.status import Status
from distrain.system import locks
from tests.cli.test_bad_input import assert_one_sentence
from tests.cli.test_run_table import make_sweep
from tests.cli_runner import distrain

FIRST, SECOND, CIFAR = "digits-20261126-181210-36f6", "digits-20261126-181224-3478", "cifar"


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDirectory]:
    return make_sweep(tmp_path / "runs", Status(state="finished", step=9, total_steps=9))


def names(found: list[RunDirectory]) -> list[str]:
    return sorted(run.path.name for run in found)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [CIFAR, FIRST, SECOND]),
        (["recipe=digits"], [FIRST, SECOND]),
        (["recipe!=digits"], [CIFAR]),
        (["name=digits-*"], [FIRST, SECOND]),
        (["state=finished", "name=*-3478"], [SECOND]),
        (["state=running"], []),
        (["tag=base*"], [FIRST]),
        (["tag!=baseline"], [CIFAR, SECOND]),
        (["recipe=digits", "optimizer.lr=0.1"], [FIRST]),
        (["optimizer.lr=2e-1"], [SECOND]),
        (["recipe=digits", "optimizer.lr>0.1"], [SECOND]),
        (["recipe=digits", "optimizer.lr>=0.1", "optimizer.lr<0.2"], [FIRST]),
        (["log.tensorboard=false"], [SECOND]),
        (["optimizer.name<1"], []),
        (["step>=9", "total_steps=9", "recipe=cifar10"], [CIFAR]),
    ],
)
def test_filters_select_runs_for_which_all_hold(
    runs: list[RunDirectory], filters: list[str], expected: list[str]
) -> None:
    write_labels(runs[0], Labels(tags=["first", "baseline"]))
    assert sorted(overview.name for overview in matching(read_each(runs), filters)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("finished", "is not KEY=VALUE"),
        ("optimizer.lr<small", "'small', which is not a number"),
        ("optimzer.lr=1", "did you mean optimizer.lr"),
    ],
)
def test_filter_that_cannot_hold_is_refused(runs: list[RunDirectory], text: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        matching(read_each(runs), [text])


def test_labels_are_written_listed_shown_and_taken_away(runs: list[RunDirectory], tmp_path: Path) -> None:
    assert distrain("runs", "tag", SECOND, "good", "v1.2", "good", cwd=tmp_path).out == f"{SECOND}: tags good, v1.2\n"
    assert distrain("runs", "note", SECOND, "  corrected labels ", cwd=tmp_path).code == 0
    header, *lines = distrain("runs", "--filter", "tag=good", cwd=tmp_path).out.splitlines()
    assert "tags" in header.split()
    (line,) = lines
    assert line.split()[0] == SECOND
    assert "good v1.2" in line
    shown = distrain("runs", "show", SECOND, cwd=tmp_path).out.splitlines()
    assert {"tags        good, v1.2", "note        corrected labels"} <= set(shown)
    (listed,) = json.loads(distrain("runs", "--json", "--filter=tag=good", cwd=tmp_path).out)
    assert (listed["tags"], listed["note"]) == (["good", "v1.2"], "corrected labels")
    assert distrain("runs", "tag", SECOND, "good", "--remove", cwd=tmp_path).code == 0
    assert distrain("runs", "note", SECOND, "", cwd=tmp_path).code == 0
    assert read_labels(RunDirectory(tmp_path / "runs" / SECOND)) == Labels(tags=["v1.2"])


def test_table_without_tags_has_no_column_for_them(runs: list[RunDirectory], tmp_path: Path) -> None:
    assert "tags" not in distrain("runs", cwd=tmp_path).out
    nothing = distrain("runs", "--filter=state=running", cwd=tmp_path)
    assert nothing.out == f"none of the 3 runs in {tmp_path / 'runs'} matches state=running\n"


def test_label_that_is_wrong_changes_nothing(runs: list[RunDirectory], tmp_path: Path) -> None:
    assert_one_sentence(distrain("runs", "tag", CIFAR, "fine", "two words", cwd=tmp_path), "'two words' is not a tag")
    assert_one_sentence(distrain("runs", "tag", CIFAR, "absent", "--remove", cwd=tmp_path), "has no tag absent")
    run = RunDirectory(tmp_path / "runs" / CIFAR)
    assert not run.labels.exists()
    run.labels.write_text("{")
    assert_one_sentence(distrain("runs", "tag", CIFAR, "fine", cwd=tmp_path), "labels.json is damaged")
    assert run.labels.read_text() == "{"
    assert distrain("runs", cwd=tmp_path).code == 0


def test_removed_run_is_in_the_trash_and_can_be_moved_back(runs: list[RunDirectory], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert distrain("runs", "rm", FIRST, FIRST, CIFAR, cwd=tmp_path).code == 0
    listed = json.loads(distrain("runs", "--json", cwd=tmp_path).out)
    assert [Path(run["run"]).name for run in listed] == [SECOND]
    (root / ".trash" / FIRST).rename(root / FIRST)
    assert distrain("runs", "show", FIRST, cwd=tmp_path).code == 0
    assert distrain("runs", "rm", FIRST, cwd=tmp_path).code == 0
    make_sweep(root, Status(state="finished"))  # another run of that name
    assert distrain("runs", "rm", FIRST, cwd=tmp_path).code == 0
    assert len([path for path in (root / ".trash").iterdir() if path.name.startswith(FIRST)]) == 2


def test_purged_run_is_gone(runs: list[RunDirectory], tmp_path: Path) -> None:
    assert distrain("runs", "rm", CIFAR, "--purge", cwd=tmp_path).out == f"deleted runs/{CIFAR}\n"
    assert not (tmp_path / "runs" / CIFAR).exists()
    assert not (tmp_path / "runs" / ".trash").exists()


@pytest.mark.parametrize("options", [[], ["--purge"]])
def test_run_in_use_is_not_removed_and_nor_are_the_others(
    runs: list[RunDirectory], tmp_path: Path, options: list[str]
) -> None:
    lock = tmp_path / "runs" / FIRST / "launcher-lock"
    code = "import sys, distrain.system.locks as l, pathlib\nwith l.hold(pathlib.Path(sys.argv[1])): print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert locks.is_held(lock)
        done = distrain("runs", "rm", CIFAR, FIRST, *options, cwd=tmp_path)
        holder.communicate("\n")
    assert_one_sentence(done, f"run {FIRST} is running; `distrain stop")
    assert names([RunDirectory(path) for path in (tmp_path / "runs").iterdir()]) == [CIFAR, FIRST, SECOND]
