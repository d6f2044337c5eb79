"""The store is where only its user can write, and neither other processes nor full disks make it wrong."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distrain.runs.curves import access, read_curves
from distrain.runs.directory import RunDirectory
from distrain.system import shared_locks
from tests.cli_runner import wait_until
from tests.disk import fill, small_disk
from tests.runs.curves.full_read import BATCH, check, expected, line, store_files
from tests.users import NOBODY, as_nobody, public_folder

READ = """
import sys
from pathlib import Path
from distrain.runs.curves import read_curves
from distrain.runs.directory import RunDirectory
found = read_curves(RunDirectory(Path(sys.argv[1])), points=100)
print(found.records, found.curves["train/loss"].mean.sum())
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr(access, "UNSTORED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


def write(run: RunDirectory, number: int) -> None:
    draws = random.Random(0)
    run.metrics.write_text("".join(line(step, train_loss=draws.random()) for step in range(number)))


def check_read(run: RunDirectory, points: int = 100) -> None:
    wanted = expected(run.read_metrics(), "train/loss", points=points, first_step=None, last_step=None)
    check(read_curves(run, points=points).curves["train/loss"], wanted)


def begin(run: RunDirectory) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", READ, str(run.path)], stdout=subprocess.PIPE, text=True)


def cached(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in (tmp_path / "cache").rglob("index"))


def test_processes_and_threads_that_read_at_once_get_the_same(run: RunDirectory) -> None:
    write(run, 20 * BATCH)
    processes = [begin(run) for _ in range(3)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: read_curves(run, points=100), range(4)))
    texts = {process.communicate(timeout=100)[0] for process in processes}
    texts |= {f"{each.records} {each.curves['train/loss'].mean.sum()}\n" for each in found}
    assert len(texts) == 1
    together = [path.read_bytes() for path in store_files(run)]
    shutil.rmtree(run.curves)
    check_read(run)
    assert [path.read_bytes() for path in store_files(run)] == together


def test_killed_process_leaves_a_store_that_is_right(run: RunDirectory) -> None:
    write(run, 40 * BATCH)
    index, _ = store_files(run)
    process = begin(run)
    wait_until(lambda: index.exists() and index.stat().st_size > 1000, "a batch", every_s=0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stored = index.stat().st_size
    check_read(run)
    assert index.stat().st_size > stored, "the kill came too late"


def test_store_is_not_written_through_links_of_others(run: RunDirectory, tmp_path: Path) -> None:
    write(run, 2 * BATCH)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "index").write_text("mine")
    run.curves.symlink_to(precious)
    check_read(run)
    assert cached(tmp_path)
    run.curves.unlink()
    run.curves.mkdir()
    (run.curves / "index").symlink_to(precious / "index")
    check_read(run)
    assert (precious / "index").read_text() == "mine"


def test_run_of_another_user_is_stored_in_the_cache(run: RunDirectory, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give the run to another user")
    write(run, 2 * BATCH)
    os.chown(run.path, NOBODY, NOBODY)
    check_read(run)
    (folder,) = cached(tmp_path)
    assert not run.curves.exists()
    assert folder.stat().st_mode & 0o077 == 0
    check_read(run)
    long_ago = time.time() - 40 * 86400
    os.utime(folder / "index", (long_ago, long_ago))
    shutil.copytree(run.path, tmp_path / "other")
    os.chown(tmp_path / "other", NOBODY, NOBODY)
    check_read(RunDirectory(tmp_path / "other"))
    assert cached(tmp_path) != [folder]
    assert len(cached(tmp_path)) == 1


def test_user_who_can_write_nowhere_reads_the_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "UNSTORED_BYTES", 0)
    with public_folder() as folder:
        run = RunDirectory(folder / "run")
        run.path.mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write(run, 2 * BATCH)
        found = as_nobody(lambda: read_curves(run, points=100).curves["train/loss"].count.sum())
        assert found == str(2 * BATCH)
        assert {path.name for path in folder.rglob("*")} == {"run", "metrics.jsonl"}


def test_full_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "UNSTORED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with small_disk(tmp_path / "disk", mebibytes=4) as disk:
        run = RunDirectory(disk)
        write(run, 3 * BATCH)
        for spare in (access._SPARE, 0):  # refused before, and while it is written
            monkeypatch.setattr(access, "_SPARE", spare)
            filler = fill(disk)
            check_read(run)
            assert cached(tmp_path)
            filler.unlink()
            shutil.rmtree(tmp_path / "cache")
        check_read(run)
        assert not cached(tmp_path)


def test_store_that_another_process_holds_for_too_long_is_not_waited_for(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "PATIENCE_S", 0.1)
    write(run, 2 * BATCH)
    run.curves.mkdir()
    held = shared_locks.lock(run.curves / "index", shared_locks.EXCLUSIVE, patience_s=0)
    assert held is not None
    check_read(run)
    assert cached(tmp_path)
    shared_locks.close(held)


def test_file_system_without_locks_has_a_store(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise shared_locks.LeasesUnavailableError("no file locks")

    monkeypatch.setattr(shared_locks, "lock", refuse)
    write(run, 2 * BATCH)
    check_read(run)
    assert all(path.exists() for path in store_files(run))
