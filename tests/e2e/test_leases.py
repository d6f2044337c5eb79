"""Runs of one machine get devices of their own, wait for them, and keep them as long as one of their ranks lives."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distrain.system.leases import LeaseFolder, user_name
from tests.cli_runner import (
    QUIET,
    Done,
    Launch,
    command,
    distrain,
    end_of,
    fit,
    heartbeat,
    status,
    wait_for_step,
    wait_until,
)
from tests.users import NOBODY, public_folder, under_nobody

ENDLESS = [
    "--set=data.source=mine:images",
    "--set=data.num_workers=0",
    "--set=train.epochs=20000",
    "--set=checkpoint.every_epochs=null",
    "--set=eval.every_epochs=null",
    "--device=cpu",
]
SHORT = ["--device=cpu", "--set=train.max_steps=2"]
ME = user_name(os.getuid())
# Slow, so that runs on it leave the processor to others. With SURVIVE, rank 1 of a run outlives its launcher: no signal
# of its death reaches it, and it waits for its first sample.
DATA = """
import ctypes
import os
import time
import torch

survives = os.environ.get("RANK") == "1" and "SURVIVE" in os.environ

class Images:
    classes = ["a", "b"]

    def __len__(self):
        return 64

    def __getitem__(self, index):
        while survives:
            time.sleep(0.01)
        time.sleep(0.002)
        return torch.zeros(1, 8, 8, dtype=torch.uint8), 0

def images(split, path):
    if survives:
        ctypes.CDLL(None).prctl(1, 0)
        open("survives", "w").close()
    return Images()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """The folder in which runs are started; all users can reach it."""
    with public_folder() as path:
        (path / "mine.py").write_text(DATA)
        yield path


@pytest.fixture(autouse=True)
def folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> LeaseFolder:
    """The leases of a machine with two slots of the CPU."""
    path = place / "leases"
    path.mkdir()
    path.chmod(0o1777)
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(path))
    monkeypatch.setenv("DISTRAIN_DEVICES", "cpu-0,cpu-1")
    return LeaseFolder(path)


def refusal(done: Done) -> str:
    """Return the only sentence of a refused command, with times as HH:MM."""
    assert done.code == 2, done.out + done.err
    assert done.err.startswith("distrain: ")
    assert done.err.count("\n") == 1
    return re.sub(r"\d\d:\d\d", "HH:MM", done.err.removeprefix("distrain: ").strip())


def is_free(folder: LeaseFolder) -> bool:
    return all(folder.find_holder(device) is None for device in ("cpu-0", "cpu-1"))


@pytest.mark.slow
def test_third_run_on_two_slots_is_refused_or_waits_until_one_has_ended(
    place: Path, launch: Launch, folder: LeaseFolder
) -> None:
    first, second = (launch(*ENDLESS, f"--run={name}", cwd=place) for name in ("first", "second"))
    for name in ("first", "second"):
        wait_for_step(place / name, 1)
    devices = {Path(holder.run).name: number for number in (0, 1) if (holder := folder.find_holder(f"cpu-{number}"))}
    assert sorted(devices) == ["first", "second"]
    holders = [f"cpu-{number} leased to run {name} of {ME} since HH:MM" for name, number in devices.items()]
    shortage = f"1 CPU slot is needed, and none of 2 is free ({'; '.join(holders)})"
    refused = distrain("fit", *SHORT, "--run=third", cwd=place)
    assert refusal(refused) == f"{shortage}; wait with --wait, or queue the run with --queue"
    assert not (place / "third").exists()
    third = launch(*SHORT, "--run=third", "--wait", cwd=place)
    assert third.stdout is not None
    assert re.sub(r"\d\d:\d\d", "HH:MM", third.stdout.readline()) == f"waiting: {shortage}\n"
    assert distrain("stop", "first", "--wait", cwd=place).code == 0
    done = end_of(third)
    assert done.code == 0, done.out
    assert status(place / "third")["state"] == "finished"
    assert end_of(first).code == 75
    assert second.poll() is None
    second.kill()
    second.wait()
    wait_until(lambda: is_free(folder), "the end of the leases")


@pytest.mark.parametrize("is_new", [True, False])
def test_interrupted_wait_ends_with_130_and_leaves_nothing_behind(
    place: Path, launch: Launch, folder: LeaseFolder, is_new: bool
) -> None:
    if not is_new:
        fit(*SHORT, "--run=mine", cwd=place)
        path = place / "mine" / "status.json"
        path.write_text(path.read_text().replace('"finished"', '"stopped"'))
    before = sorted(path for path in place.rglob("*") if folder.path not in path.parents)
    leases = [folder.acquire(device, place / "other") for device in ("cpu-0", "cpu-1")]
    more = SHORT if is_new else ["--device=cpu"]
    waiting = launch(*more, "--run=mine", "--wait", cwd=place)
    assert waiting.stdout is not None
    assert waiting.stdout.readline().startswith("waiting: ")
    waiting.send_signal(signal.SIGINT)
    done = end_of(waiting)
    assert done.code == 130, done.out
    assert done.out == "distrain: interrupted\n"
    assert sorted(path for path in place.rglob("*") if folder.path not in path.parents) == before
    for lease in leases:
        assert lease is not None
        lease.release()


def test_run_that_is_in_use_is_refused_and_does_not_wait(place: Path, launch: Launch) -> None:
    launch(*ENDLESS, "--run=mine", cwd=place)
    wait_for_step(place / "mine", 1)
    refused = distrain("fit", "--device=cpu", "--run=mine", "--wait", cwd=place)
    assert refusal(refused).startswith(f"run directory {place}/mine is in use by ")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_killed_launcher_keeps_its_devices_until_its_last_rank_has_ended(
    place: Path, launch: Launch, folder: LeaseFolder, launcher: str
) -> None:
    words = ["--procs=2", f"--launcher={launcher}", "--restarts=0", "--run=run"]
    process = launch(*ENDLESS, *words, cwd=place, env={"SURVIVE": "1"})
    wait_until((place / "survives").exists, "rank 1")
    ranks = [heartbeat(place / "run", rank)["pid"] for rank in (0, 1)]
    process.kill()
    process.wait()
    try:
        wait_until(lambda: not psutil.pid_exists(ranks[0]), "the end of rank 0")
        others = f"(cpu-0 and cpu-1 leased to run run of {ME} since HH:MM)"
        refused = distrain("fit", *SHORT, "--run=next", cwd=place)
        assert refusal(refused).startswith(f"1 CPU slot is needed, and none of 2 is free {others}; wait with --wait")
        assert psutil.pid_exists(ranks[1])
    finally:
        os.kill(ranks[1], signal.SIGKILL)
    wait_until(lambda: is_free(folder), "the end of the leases")


@pytest.mark.slow
def test_two_users_see_the_leases_of_each_other_and_cannot_end_them(
    place: Path, launch: Launch, folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    under = under_nobody()
    theirs = place / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)

    def as_nobody(*words: str) -> Done:
        environment = {**os.environ, "HOME": str(theirs), "DISTRAIN_DEVICES": "cpu-0"}
        done = subprocess.run(
            [*under, *command(*words)], cwd=theirs, env=environment, capture_output=True, text=True, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    trained = as_nobody("fit", *SHORT, *QUIET, "--run=first")
    assert trained.code == 0, trained.out + trained.err
    assert (theirs / "first" / "status.json").stat().st_uid == NOBODY
    assert (folder.path / "cpu-0.lock").stat().st_uid == NOBODY
    monkeypatch.setenv("DISTRAIN_DEVICES", "cpu-0")
    mine = launch(*ENDLESS, "--run=mine", cwd=place)
    wait_for_step(place / "mine", 1)
    refused = refusal(as_nobody("fit", *SHORT, *QUIET, "--run=second"))
    assert refused.startswith("1 CPU slot is needed, and none of 1 is free (cpu-0 leased to run mine of root since")
    assert distrain("devices", "drain", "cpu-0", "--reason=of root", cwd=place).code == 0
    kept = refusal(as_nobody("devices", "undrain", "cpu-0"))
    assert kept == "cpu-0 was drained by root at HH:MM: of root; only that user and root can return it to service"
    mine.kill()
    mine.wait()
    refused = refusal(as_nobody("fit", *SHORT, *QUIET, "--run=second"))
    assert "(cpu-0 drained by root at HH:MM: of root); wait with" in refused
    assert not (theirs / "second").exists()
    assert distrain("devices", "undrain", "cpu-0", cwd=place).code == 0
    assert as_nobody("devices", "drain", "cpu-0").code == 0
    refused = refusal(distrain("fit", *SHORT, "--run=mine2", cwd=place))
    assert "(cpu-0 drained by nobody at HH:MM); wait with" in refused
