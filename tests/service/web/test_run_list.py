"""The list of runs in memory: it shows what is on the disk, and requests that come together share a read."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distrain.runs.labels import Labels, write_labels
from distrain.runs.overview import read_overviews
from distrain.service.web import run_list
from distrain.service.web.run_list import RunList
from tests.service.web.sites import make_run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "runs"


def states(runs: RunList) -> dict[str, tuple[str, list[str]]]:
    return {overview.name: (overview.state, overview.labels.tags) for overview in runs.read()}


def test_changes_on_the_disk_are_seen_although_runs_are_remembered(root: Path) -> None:
    old = [make_run(root, f"run-{number}", '{"state": "finished"}') for number in range(3)]
    time.sleep(2.1)  # what has just changed is not remembered
    runs = RunList(root)
    assert states(runs) == {run.path.name: ("finished", []) for run in old}
    write_labels(old[0], Labels(tags=["best"]))
    old[1].status.write_text('{"state": "failed"}')
    old[2].remove()
    make_run(root, "new", '{"state": "stopped"}')
    expected = {"run-0": ("finished", ["best"]), "run-1": ("failed", []), "new": ("stopped", [])}
    assert states(runs) == expected == states(RunList(root))


def test_requests_that_come_together_share_a_read_that_begins_after_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, begun, may_end = make_run(root), threading.Semaphore(0), threading.Semaphore(0)
    reads = list[int]()

    def slow_read(*arguments: Any) -> Any:
        found = read_overviews(*arguments)
        reads.append(len(found))
        begun.release()
        may_end.acquire()
        return found

    monkeypatch.setattr(run_list, "read_overviews", slow_read)
    runs = RunList(root)
    with ThreadPoolExecutor(20) as threads:
        first = threads.submit(runs.read)
        begun.acquire()
        make_run(root, "later")
        others = [threads.submit(runs.read) for _ in range(19)]
        time.sleep(0.5)  # until they wait
        may_end.release(20)
        assert [overview.name for overview in first.result()] == [run.path.name]
        assert all(len(other.result()) == 2 for other in others)
    assert reads[0] == 1 and len(reads) < 5


def test_read_that_fails_is_repeated(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(root)
    runs = RunList(root)
    monkeypatch.setattr(run_list, "read_overviews", lambda *_: Path("/nonexistent").stat())
    with pytest.raises(FileNotFoundError):
        runs.read()
    monkeypatch.undo()
    assert [overview.name for overview in runs.read()] == ["one"]
