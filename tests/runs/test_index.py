"""A list of many runs is read from the index, and never differs from the runs."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from distrain.config import load_recipe
from distrain.runs import index, overview
from distrain.runs.checkpoints import final_path
from distrain.runs.directory import RunDirectory
from distrain.runs.labels import Labels, write_labels
from distrain.runs.overview import Overview, read_each, read_overviews
from distrain.runs.query import find_runs
from distrain.runs.status import Attempt, Job, Status
from distrain.system import locks
from tests.cli.test_output import CLASSES, make_run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs, listed once; their files count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "_SETTLED_S", -1.0)
    monkeypatch.setattr(overview, "MIN_RUNS", 2)
    attempt = Attempt(started=1.0, host="h", pid=1, world_size=1, first_step=0, last_step=9, state="finished")
    for number in range(4):
        run = make_run(tmp_path / "runs" / f"run-{number}", CLASSES.model_copy(update={"attempts": [attempt]}))
        run.recipe.write_text(load_recipe("digits", overrides=[f"optimizer.lr={number + 1}"]).to_yaml())
    assert_true(tmp_path / "runs")
    assert len(remembered(tmp_path)) == 4
    assert (tmp_path / "cache" / "distrain").stat().st_mode & 0o777 == 0o700
    return tmp_path / "runs"


def described(overviews: list[Overview]) -> list[dict[str, Any]]:
    """Return all that lists show of the runs."""
    return [
        {**each.summary(), **each.brief._asdict(), **each.recipe, "name": each.name, "job": each.run.read_job()}
        for each in overviews
    ]


def shown(root: Path) -> list[dict[str, Any]]:
    """Return what a list shows, from the index where it knows a run."""
    return described(read_overviews(root))


def assert_true(root: Path) -> None:
    """Assert that a list, and the one after it, which uses what the first one saved, are those without an index."""
    truth = described(read_each(find_runs(root)))
    assert shown(root) == truth
    assert shown(root) == truth


def index_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "distrain").iterdir()
    return path


def remembered(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(index_file(tmp_path).read_text().partition("\n")[2])["runs"]
    return found


def resume(run: RunDirectory) -> None:
    run.write_status(run.read_status().model_copy(update={"state": "failed", "step": 3}))


def edit_in_place(run: RunDirectory) -> None:
    """Change as many bytes as there were, in the same file."""
    with run.recipe.open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write(text.replace("seed: 0", "seed: 7"))


def relabel(run: RunDirectory) -> None:
    write_labels(run, Labels(tags=["good"], note="new"))


def lose_best(run: RunDirectory) -> None:
    final_path(run.checkpoints, 6).rmdir()


def damage(run: RunDirectory) -> None:
    run.status.write_text("{")


def add_job(run: RunDirectory) -> None:
    run.write_job(Job(id="12"))


def replace(run: RunDirectory) -> None:
    """Put another run in the place of this one, with the times of this one."""
    other = run.path.with_name("run-0")
    shutil.rmtree(run.path)
    shutil.copytree(other, run.path)


@pytest.mark.parametrize("change", [resume, edit_in_place, relabel, lose_best, damage, add_job, replace, None])
def test_changed_run_is_shown_as_it_is_at_once(root: Path, change: Callable[[RunDirectory], None] | None) -> None:
    before = shown(root)
    run = RunDirectory(root / "run-2")
    if change is None:
        shutil.rmtree(run.path)
    else:
        change(run)
    assert shown(root) != before
    assert_true(root)


def test_relabelled_run_is_relabelled_again(root: Path) -> None:
    run = RunDirectory(root / "run-2")
    for tag in ("first", "second"):
        write_labels(run, Labels(tags=[tag]))
        assert {row["name"]: row["tags"] for row in shown(root)}["run-2"] == [tag]
    run.labels.unlink()
    assert {row["name"]: row["tags"] for row in shown(root)}["run-2"] == []


def test_only_runs_that_have_ended_and_are_settled_are_remembered(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = RunDirectory(root / "run-1")
    live.write_status(CLASSES.model_copy(update={"state": "running"}))
    with locks.hold(live.launcher_lock):
        assert_true(root)
    assert remembered(tmp_path).keys() == {"run-0", "run-2", "run-3"}
    monkeypatch.setattr(index, "_SETTLED_S", 3600.0)
    RunDirectory(root / "run-2").write_status(CLASSES.model_copy(update={"step": 8}))
    assert_true(root)
    assert remembered(tmp_path).keys() == {"run-0", "run-3"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff\n{}", "sum\n{}", "sum\n[]", 'sum\n{"format": 2}', 'sum\n{"format": 99, "runs": 1}', "flip"],
)
def test_damaged_index_is_built_again(root: Path, tmp_path: Path, content: bytes | str) -> None:
    path = index_file(tmp_path)
    whole = path.read_bytes()
    if content == "flip":
        content = whole.replace(b"finished", b"fanished", 1)
    elif isinstance(content, str):
        text = content.partition("\n")[2]
        content = f"{xxhash.xxh3_128_hexdigest(text.encode())}\n{text}".encode()
    path.write_bytes(content)
    assert_true(root)
    assert remembered(tmp_path).keys() == {"run-0", "run-1", "run-2", "run-3"}


def test_entry_of_another_form_is_read_again(root: Path, tmp_path: Path) -> None:
    path = index_file(tmp_path)
    found = json.loads(path.read_text().partition("\n")[2])
    found["runs"]["run-0"] = 3
    found["runs"]["run-1"][2] = [10**6]
    found["runs"]["run-2"] = [["recipe.yaml"], None]
    text = json.dumps(found)
    path.write_text(f"{xxhash.xxh3_128_hexdigest(text.encode())}\n{text}")
    assert_true(root)
    assert remembered(tmp_path).keys() == {"run-0", "run-1", "run-2", "run-3"}


def test_recipe_with_what_json_cannot_hold_is_read_each_time(root: Path, tmp_path: Path) -> None:
    run = RunDirectory(root / "run-2")
    run.recipe.write_text("name: x\nday: 2026-11-27\nmore: [{1: 2}]\n")
    assert {each.name: each.recipe for each in read_overviews(root)}["run-2"]["more"] == [{1: 2}]
    assert {each.name: each.recipe for each in read_overviews(root)}["run-2"]["more"] == [{1: 2}]
    assert remembered(tmp_path).keys() == {"run-0", "run-1", "run-3"}


def test_many_readers_and_a_writer_at_once_see_whole_lists(root: Path) -> None:
    """Processes replace the index while others read it; here threads, which switch more often."""
    over, wrong = threading.Event(), list[object]()

    def read() -> None:
        while not over.is_set():
            names = [row["name"] for row in shown(root)]
            if sorted(names) != ["run-0", "run-1", "run-2", "run-3"]:
                wrong.append(names)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for step in range(30):
        RunDirectory(root / "run-1").write_status(CLASSES.model_copy(update={"step": step}))
        (step_shown,) = [row["step"] for row in shown(root) if row["name"] == "run-1"]
        if step_shown != step:
            wrong.append(step)
    over.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_cache_folder_that_cannot_be_written_only_costs_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("/proc/nothing", os.devnull):
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        assert_true(root)


def test_few_runs_need_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_run(tmp_path / "runs" / "run", Status(state="finished"))
    assert_true(tmp_path / "runs")
    assert not (tmp_path / "cache").exists()
