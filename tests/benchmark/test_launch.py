"""The next measurement removes the folders of killed ones."""

import os
import time
from pathlib import Path

from distrain.benchmark.launch import remove_leftovers
from distrain.runs.directory import RunDirectory


def left(place: Path, name: str, *, age_s: float) -> RunDirectory:
    run = RunDirectory(place / f".distrain-measures-{name}" / "digits")
    run.create()
    then = time.time() - age_s
    os.utime(run.path.parent, (then, then))
    return run


def test_only_old_unused_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    left(tmp_path, "killed", age_s=3600)
    left(tmp_path, "new", age_s=0)
    busy = left(tmp_path, "busy", age_s=3600)
    child = os.fork()
    if child == 0:  # a lock is the process's own: another one must hold it
        with busy.hold_launcher_lock():
            (tmp_path / "ready").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    try:
        remove_leftovers(tmp_path)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"mine", "ready", ".distrain-measures-new", ".distrain-measures-busy"}
