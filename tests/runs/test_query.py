"""Whether a run on another machine is alive, whose clock may differ from the one here."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distrain.runs import query
from distrain.runs.directory import RunDirectory
from distrain.runs.stacks import read_stacks
from distrain.runs.status import Attempt, Status
from tests.runs.test_error_reports import beat


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrain.runs.query._NEXT_BEAT_S", 0.5)


def write(run: RunDirectory, *, behind_s: float, host: str = "elsewhere") -> None:
    now = time.time() - behind_s
    attempt = Attempt(started=now, host=host, pid=1, world_size=1, first_step=0, last_step=0, state="running")
    run.write_status(Status(state="running", heartbeat=now, attempts=[attempt]))
    run.write_heartbeat(beat(0, host=host).model_copy(update={"time": now}))


@contextmanager
def beating(run: RunDirectory, *, behind_s: float) -> Iterator[None]:
    """A run that is alive, on a machine whose clock is so much behind."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.05):
            write(run, behind_s=behind_s)

    write(run, behind_s=behind_s)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create()
    made.recipe.touch()
    return made


@pytest.mark.parametrize("behind_s", [-600.0, 0.0, 600.0])
def test_run_elsewhere_is_alive_as_long_as_its_heartbeats_follow_each_other(run: RunDirectory, behind_s: float) -> None:
    with beating(run, behind_s=behind_s):
        assert query.is_alive(run)
        assert query.read_states([run]) == {run.path: "running"}
        if behind_s > 0:
            assert [rank.is_silent for rank in read_stacks(run, world_size=1)] == [False]


@pytest.mark.parametrize("behind_s", [-600.0, 600.0, 10 * 3600.0])
def test_run_elsewhere_that_has_ended_is_dead_whatever_its_clock_said(run: RunDirectory, behind_s: float) -> None:
    write(run, behind_s=behind_s)
    assert not query.is_alive(run)
    assert query.read_states([run]) == {run.path: "died"}


def test_run_that_is_the_current_folder_has_its_name(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.path / "below").mkdir()
    for folder, reference in ((run.path, "."), (run.path / "below", "..")):
        monkeypatch.chdir(folder)
        assert query.find_run(reference, run.path / "runs").path.name == run.path.name
