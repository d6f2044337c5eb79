"""The run directory: one trainer at a time, files that are complete or missing, metrics that survive a crash."""

import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distrain.errors import RunError
from distrain.runs.directory import RunDirectory, new_run_directory
from distrain.runs.status import Status
from distrain.system import filesystem
from distrain.system.files import write_atomically

TAKE_THE_LOCK = """
import sys
from pathlib import Path
from distrain.system import filesystem
from distrain.errors import RunError
from distrain.runs.directory import RunDirectory
try:
    with RunDirectory(Path(sys.argv[1])).hold_trainer_lock():
        print("held", flush=True)
        sys.stdin.read()
except RunError as error:
    print(f"refused: {error}")
"""


def holder(run: RunDirectory) -> subprocess.Popen[str]:
    """Start another process that acquires the lock, and holds it until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", TAKE_THE_LOCK, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


def test_lock_refuses_a_second_process_and_names_the_first(run: RunDirectory) -> None:
    with run.hold_trainer_lock():
        out, _ = holder(run).communicate(timeout=60)
    assert out.startswith(f"refused: run directory {run.path} is in use by process ")
    out, _ = holder(run).communicate(timeout=60)
    assert out == "held\n"


def test_lock_is_released_when_its_process_is_killed(run: RunDirectory) -> None:
    with holder(run) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"is in use by process {other.pid} on "), run.hold_trainer_lock():
            pass
        threading.Timer(0.3, other.kill).start()
        with run.hold_trainer_lock(patience_s=60):  # its launcher is gone, and it is about to be
            pass


def test_folder_without_a_status_is_a_queued_run(run: RunDirectory) -> None:
    assert run.read_status() == Status()
    assert run.read_status().state == "queued"


def test_status_is_read_back_as_it_was_written(run: RunDirectory) -> None:
    status = Status(state="running", step=3, total_steps=9, best={"step": 2, "val/top1": 0.5}, weights_digest="ab")
    run.write_status(status)
    assert run.read_status() == status
    assert [path.name for path in run.path.iterdir() if path.is_file()] == ["status.json"]


def test_status_under_constant_writes_is_never_read_partially(run: RunDirectory) -> None:
    long = Status(state="running", weights_digest="x" * 200_000)
    short = Status(state="running", weights_digest="y")
    run.write_status(short)
    is_over = threading.Event()

    def write() -> None:
        while not is_over.is_set():
            run.write_status(long)
            run.write_status(short)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert run.read_status() in (long, short)
    finally:
        is_over.set()
        writer.join()


def test_write_that_fails_keeps_the_old_file(run: RunDirectory) -> None:
    write_atomically(run.status, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(run.status, "\ud800")
    assert run.status.read_text() == "old"


def test_invalid_status_is_an_error_and_not_a_queued_run(run: RunDirectory) -> None:
    run.status.write_text('{"state": "asleep"}')
    with pytest.raises(RunError, match=r"status.json is damaged; move it away"):
        run.read_status()


def test_metrics_reader_skips_a_line_cut_short_by_a_crash(run: RunDirectory) -> None:
    assert run.read_metrics() == []
    run.metrics.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert run.read_metrics() == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}]
    run.metrics.write_text('{"step": 1}\n{"step": 2}')
    assert run.read_metrics() == [{"step": 1}]


def test_folder_with_other_files_and_a_file_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    with pytest.raises(RunError, match="contains other files but no run"):
        RunDirectory(tmp_path / "photos").create()
    with pytest.raises(RunError, match="is a file"):
        RunDirectory(tmp_path / "photos" / "mine.jpg").create()
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine.jpg"]


def test_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as raised:
        RunDirectory(tmp_path / "file" / "run").create()
    words = f"{tmp_path}/file/run: a part of the path is a file, not a folder"
    assert str(filesystem.explain(raised.value)).startswith(words)


def test_refused_start_removes_only_what_it_created(tmp_path: Path) -> None:
    new = RunDirectory(tmp_path / "runs" / "new")
    with pytest.raises(RunError, match="refused"), new.created(), new.hold_launcher_lock():
        write_atomically(new.recipe, "name: x")
        raise RunError("refused")
    assert not list(tmp_path.iterdir())

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    with pytest.raises(RunError, match="contains other files"), RunDirectory(tmp_path / "photos").created():
        pass
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine.jpg"]

    with new.created():
        write_atomically(new.recipe, "name: x")
    with pytest.raises(RunError, match="refused"), new.created():
        raise RunError("refused")
    assert new.exists


def test_start_that_is_refused_leaves_the_folder_of_one_that_was_faster(run: RunDirectory) -> None:
    with holder(run) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="is in use by process"), run.created(), run.hold_trainer_lock():
            pass
        assert run.path.is_dir()
        other.kill()


def test_folder_that_a_killed_start_left_is_used_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.launcher_lock.touch()
    run.create()
    (run.checkpoints / "step-1").mkdir()
    with pytest.raises(RunError, match="contains other files"):
        run.create()


def test_new_run_directories_of_one_second_differ(tmp_path: Path) -> None:
    names = {new_run_directory("digits", tmp_path).path.name for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("digits-") for name in names)


def test_status_with_a_metric_that_is_not_a_number_is_read_back(run: RunDirectory) -> None:
    run.write_status(Status(last={"step": 3, "val/loss": math.nan}, best={"step": 1, "val/loss": math.inf}))
    found = run.read_status()
    assert found.last is not None and math.isnan(found.last["val/loss"])
    assert found.best is not None and math.isnan(found.best["val/loss"])
    assert "null" in run.status.read_text()
