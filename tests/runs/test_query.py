"""Whether a run is alive: by its locks here, by its heartbeat on another node, whose clock may differ."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE

import pytest

from distrain.errors import RunError
from distrain.runs import liveness, query
from distrain.runs.directory import BUNDLE, RunDirectory
from distrain.runs.stacks import read_stacks
from distrain.runs.status import Attempt, Job, Status
from tests.runs.test_error_reports import beat

HOLD = """
import sys
from pathlib import Path

from distrain.runs.directory import BUNDLE, RunDirectory

with RunDirectory(Path(sys.argv[1])).hold_launcher_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrain.runs.liveness._NEXT_HEARTBEAT_S", 0.5)


def write(run: RunDirectory, *, behind_s: float, host: str = "elsewhere") -> None:
    now = time.time() - behind_s
    attempt = Attempt(started=now, host=host, pid=1, world_size=1, first_step=0, last_step=0, state="running")
    run.write_status(Status(state="running", heartbeat=now, attempts=[attempt]))
    run.write_heartbeat(beat(0, host=host).model_copy(update={"time": now}))


@contextmanager
def beating(run: RunDirectory, *, behind_s: float) -> Iterator[None]:
    """A run that is alive on a node whose clock is behind by this much."""
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
def test_run_elsewhere_is_alive_while_new_heartbeats_arrive(run: RunDirectory, behind_s: float) -> None:
    with beating(run, behind_s=behind_s):
        assert liveness.is_alive(run)
        assert liveness.read_states([run]) == {run.path: "running"}
        if behind_s > 0:
            assert [rank.is_silent for rank in read_stacks(run, world_size=1)] == [False]


@pytest.mark.parametrize("behind_s", [-600.0, 600.0, 10 * 3600.0])
def test_run_elsewhere_that_has_ended_is_dead_whatever_its_clock_said(run: RunDirectory, behind_s: float) -> None:
    write(run, behind_s=behind_s)
    assert not liveness.is_alive(run)
    assert liveness.read_states([run]) == {run.path: "died"}


def test_silent_run_is_alive_while_its_launcher_holds_it(run: RunDirectory) -> None:
    write(run, behind_s=600.0, host=socket.gethostname())
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdin=PIPE, stdout=PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "held\n"
        assert liveness.is_alive(run)
        assert liveness.read_states([run]) == {run.path: "running"}
        launcher.kill()
        launcher.wait()
    assert not liveness.is_alive(run)
    assert liveness.read_states([run]) == {run.path: "died"}


def test_run_without_a_status_is_starting_or_never_started(run: RunDirectory) -> None:
    assert liveness.read_states([run]) == {run.path: "never started"}
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdin=PIPE, stdout=PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "held\n"
        assert liveness.read_states([run]) == {run.path: "starting"}
        launcher.communicate("\n")
    run.write_job(Job(id="1"))
    assert liveness.read_states([run]) == {run.path: "queued"}


def test_run_that_is_the_current_folder_has_its_name(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.path / "below").mkdir()
    for folder, reference in ((run.path, "."), (run.path / "below", "..")):
        monkeypatch.chdir(folder)
        assert query.find_run(reference, run.path / "runs").path.name == run.path.name


def test_bundle_or_file_given_as_a_run_is_named_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "ants").mkdir()
    (tmp_path / "ants" / BUNDLE).touch()
    for find in (query.find_run, partial(query.find_checkpoint, must_be_best=False)):
        with pytest.raises(RunError, match=r"ants is a bundle, not a run: `distrain predict \S+ants IMAGE...` uses it"):
            find(str(tmp_path / "ants"), tmp_path / "runs")
        with pytest.raises(RunError, match=r"bundle.json is a file, not a run"):
            find(str(tmp_path / "ants" / BUNDLE), tmp_path / "runs")
