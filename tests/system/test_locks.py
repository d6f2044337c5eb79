"""A lock is held by one process, on file systems with and without record locks."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from distrain.errors import StorageError
from distrain.system import locks
from tests.cli_runner import Launch, distrain, end_of, status, wait_for_step, wait_until
from tests.disk import fill, small_disk
from tests.refusing import without_locks

HOLD = """
import sys
from pathlib import Path
from distrain.system import locks
locks.STALE_S = 1.0
try:
    with locks.hold(Path(sys.argv[1]), patience_s=float(sys.argv[2]), stale_s=1.0) as note:
        print("held with lock files" if note else "held", flush=True)
        sys.stdin.read()
except locks.HeldError as error:
    print(f"refused: {error}", flush=True)
"""
COUNT = """
import sys, time
from pathlib import Path
from distrain.system import locks
lock, journal = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with locks.hold(lock, patience_s=60):
        with journal.open("a") as file:
            file.write("in ")
            file.flush()
            time.sleep(0.002)
            file.write("out ")
"""
NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


def run(program: str, *arguments: object, error: int | None) -> "subprocess.Popen[str]":
    refused = {} if error is None else without_locks(error)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, **refused},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def contenders() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(stack: ExitStack, program: str, *arguments: object, error: int | None) -> "subprocess.Popen[str]":
    process = run(program, *arguments, error=error)
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


@pytest.mark.parametrize("error", [None, *NO_LOCKS])
def test_lock_refuses_a_second_process_and_is_released_by_a_kill(
    tmp_path: Path, contenders: ExitStack, error: int | None
) -> None:
    lock = tmp_path / "lock"
    words = "held" if error is None else "held with lock files"
    first = start(contenders, HOLD, lock, 0, error=error)
    assert line(first) == words
    assert locks.is_held(lock)
    second = start(contenders, HOLD, lock, 0, error=error)
    assert line(second).startswith(f"refused: process {first.pid} on ")

    third = start(contenders, HOLD, lock, 60, error=error)
    first.kill()
    assert line(third) == words
    third.communicate(timeout=60)
    assert not locks.is_held(lock)
    assert line(start(contenders, HOLD, lock, 0, error=error)) == words


def test_threads_of_one_process_exclude_each_other_and_none_takes_the_lock_away(
    tmp_path: Path, contenders: ExitStack
) -> None:
    """To the kernel, threads are one holder, and a thread that closes the file releases the lock."""
    lock, found = tmp_path / "lock", list[str]()

    def contend() -> None:
        found.append(f"held: {locks.is_held(lock)}")
        try:
            with locks.hold(lock):
                found.append("acquired")
        except locks.HeldError as error:
            found.append(f"refused: {error}")

    with locks.hold(lock):
        assert not locks.is_held(lock)
        thread = threading.Thread(target=contend)
        thread.start()
        thread.join()
        other = contenders.enter_context(run(HOLD, lock, 0.0, error=None))
        assert line(other).startswith(f"refused: process {os.getpid()}")
    assert found[0] == "held: True" and found[1].startswith(f"refused: process {os.getpid()}")
    contend()
    assert found[2:] == ["held: False", "acquired"]


def test_lock_files_let_one_of_many_contenders_in_at_a_time(tmp_path: Path, contenders: ExitStack) -> None:
    lock, journal = tmp_path / "lock", tmp_path / "journal"
    processes = [start(contenders, COUNT, lock, journal, 12, error=errno.ENOSYS) for _ in range(4)]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert journal.read_text().split() == ["in", "out"] * 48
    assert len(list(tmp_path.glob("lock.*"))) <= 8


def test_lock_file_is_respected_by_a_machine_with_record_locks(tmp_path: Path, contenders: ExitStack) -> None:
    lock = tmp_path / "lock"
    first = start(contenders, HOLD, lock, 0, error=errno.ENOLCK)
    assert line(first) == "held with lock files"
    assert line(start(contenders, HOLD, lock, 0, error=None)).startswith(f"refused: process {first.pid} on ")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Create lock files as a process on another node would: its process ids are unknown here."""
    monkeypatch.setattr(locks, "_space", lambda: "another boot")
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.05)


@pytest.mark.usefixtures("elsewhere")
def test_lock_file_of_another_machine_is_held_while_heartbeats_arrive(tmp_path: Path, contenders: ExitStack) -> None:
    lock = tmp_path / "lock"
    with locks.hold_by_files(lock, stale_s=1.0):
        assert line(start(contenders, HOLD, lock, 0, error=errno.ENOSYS)).startswith(f"refused: process {os.getpid()}")
    assert line(start(contenders, HOLD, lock, 0, error=errno.ENOSYS)) == "held with lock files"


@pytest.mark.usefixtures("elsewhere")
def test_lock_file_of_another_machine_is_taken_over_once_heartbeats_stop(
    tmp_path: Path, contenders: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    taken = locks._acquire(lock, 0, 1.0)  # and no thread that beats
    began = time.monotonic()
    others = [start(contenders, HOLD, lock, 0, error=errno.ENOSYS) for _ in range(2)]
    answers = {line(other).partition(":")[0] for other in others}
    assert answers == {"held with lock files", "refused"}
    assert time.monotonic() - began >= 1.0

    over = threading.Event()
    monkeypatch.setattr(locks, "_end_superseded", lambda _: over.set())  # for the end of the process
    locks._write_heartbeats(lock, *taken, over)
    assert over.is_set()


def test_full_disk_is_reported_with_the_path_of_the_lock(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        fill(disk)
        with pytest.raises(OSError, match="No space left") as caught, locks.hold(disk / "serve-lock"):
            pass
    assert caught.value.filename == str(disk / "serve-lock")


def test_training_without_locks_refuses_a_second_one_and_resumes_after_a_kill(tmp_path: Path, launch: Launch) -> None:
    run, environment = tmp_path / "run", without_locks(errno.ENOSYS)
    arguments = ["--run=run", "--procs=1", "--device=cpu", "--set=train.epochs=400"]
    first = launch(*arguments, cwd=tmp_path, env=environment)
    wait_for_step(run, 1)
    second = distrain("fit", "--run=run", cwd=tmp_path, env=environment)
    assert second.code == 2
    assert f"is in use by process {first.pid} on " in second.err
    first.kill()
    first.wait()

    resumed = launch(*arguments, cwd=tmp_path, env=environment)
    wait_until(lambda: len(status(run)["attempts"]) == 2, "the second attempt")
    stopped = distrain("stop", "run", "--wait", cwd=tmp_path, env=environment)
    assert "stopped" in stopped.out
    done = end_of(resumed)
    assert done.code == 75
    assert f"note: {run} has no file locks" in done.out


def test_lock_is_not_taken_through_a_link_and_a_pipe_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / "pipe")
    for name in ("lock", "pipe"):
        with pytest.raises(StorageError, match="is not a file"), locks.hold(tmp_path / name):
            pass
    assert (tmp_path / "mine").read_text() == "precious"
    os.mkfifo(tmp_path / "other.1")
    assert not any(locks.is_held(tmp_path / name) for name in ("lock", "pipe", "other"))
