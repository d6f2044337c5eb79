"""Runs whose checkpoints are damaged, and runs whose disk is full: nothing that was safe is lost."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoint.factories import DAMAGES, damage
from tests.cli_runner import QUIET, command, comparable, distrain, fit, metrics, status
from tests.disk import fill, small_disk

SHORT = ["digits", "--set=train.epochs=2", "--set=log.every_steps=5", "--set=checkpoint.every_steps=10"]
LONG = [
    "digits",
    "--set=train.epochs=100000",
    "--set=log.every_steps=5",
    "--set=eval.every_epochs=null",
    "--set=checkpoint.every_epochs=null",
    "--set=checkpoint.every_steps=20",
]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-????????"))


def make_unfinished(run: Path) -> None:
    """As if it had been killed right after its last checkpoint."""
    (run / "status.json").unlink()


def test_damaged_checkpoint_is_set_aside_and_the_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(*SHORT, "--procs=2", "--set=checkpoint.keep_last=9", "--run=run", cwd=tmp_path)
    digest, records = status(run)["weights_digest"], comparable(run)
    for step, name, how in (
        (46, "__1_0.distcp", "flipped"),
        (40, ".metadata", "truncated"),
        (30, "state.json", "missing"),
    ):
        damage(run / "checkpoints" / f"step-{step:08d}" / name, how)
    (run / "checkpoints" / "step-00000023" / "MANIFEST.json").unlink()
    (run / "checkpoints" / "step-00000050.tmp").mkdir()
    make_unfinished(run)
    done = fit(*SHORT, "--procs=2", "--set=checkpoint.keep_last=9", "--run=run", cwd=tmp_path)
    for words in (
        "checkpoint step-00000046 is not used: __1_0.distcp has changed since it was written",
        "checkpoint step-00000040 is not used: .metadata has",
        "checkpoint step-00000030 is not used: state.json is missing",
        "checkpoint step-00000023 is not used: it has no MANIFEST.json",
        "resumes from checkpoint step-00000020 at step 20 of 46",
    ):
        assert words in done.out
    assert status(run)["weights_digest"] == digest
    assert comparable(run) == records
    assert sorted(path.name for path in (run / "checkpoints" / "quarantine").iterdir()) == [
        f"step-{step:08d}" for step in (23, 30, 40, 46)
    ]
    assert steps(run) == [10, 20, 23, 30, 40, 46]
    assert not list((run / "checkpoints").glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", ".metadata", "state.json", "MANIFEST.json"])
def test_every_damage_to_every_file_ends_in_the_same_bits(tmp_path: Path, name: str, how: str) -> None:
    run = tmp_path / "run"
    fit(*SHORT, "--procs=2", "--run=run", cwd=tmp_path)
    digest, records = status(run)["weights_digest"], comparable(run)
    damage(run / "checkpoints" / "step-00000046" / name, how)
    make_unfinished(run)
    done = fit(*SHORT, "--procs=2", "--run=run", cwd=tmp_path)
    assert "checkpoint step-00000046 is not used" in done.out
    assert "resumes from checkpoint step-00000040" in done.out
    assert (status(run)["weights_digest"], comparable(run)) == (digest, records)


def test_background_saves_change_no_bit_and_their_wait_is_recorded(tmp_path: Path) -> None:
    for name, asynchronous in (("behind", "true"), ("before", "false")):
        fit(*SHORT, f"--set=checkpoint.asynchronous={asynchronous}", f"--run={name}", cwd=tmp_path)
    assert comparable(tmp_path / "behind") == comparable(tmp_path / "before")
    assert status(tmp_path / "behind")["weights_digest"] == status(tmp_path / "before")["weights_digest"]
    for name in ("behind", "before"):
        waits = [
            record["checkpoint/blocked_s"] for record in metrics(tmp_path / name) if "checkpoint/blocked_s" in record
        ]
        assert len(waits) == 4  # checkpoints at 10, 20 and 23, 30, 40; no record comes after the one at the end
        assert all(0 < wait < 10 for wait in waits)


def test_best_evaluation_is_saved_and_stays_though_nothing_else_is_due(tmp_path: Path) -> None:
    arguments = ["--set=train.epochs=3", "--set=eval.every_steps=10", "--set=checkpoint.every_epochs=null"]
    fit(*arguments, "--set=checkpoint.keep_last=1", "--run=run", cwd=tmp_path)
    best = int(status(tmp_path / "run")["best"]["step"])
    assert set(steps(tmp_path / "run")) == {best, 69}


@pytest.mark.slow
def test_checkpoints_come_by_the_clock(tmp_path: Path) -> None:
    arguments = [*LONG, "--set=checkpoint.every_steps=null", "--set=checkpoint.every_minutes=0.01", "--run=run"]
    process = subprocess.Popen(command("fit", *arguments, "--procs=2", *QUIET), cwd=tmp_path)
    try:
        wait_until(lambda: len(steps(tmp_path / "run")) == 2, "no checkpoints came")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    *by_the_clock, _ = steps(tmp_path / "run")  # the last one is the stop's
    assert all(step % 5 == 0 for step in by_the_clock)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_full_disk_costs_checkpoints_and_at_the_end_says_what_is_safe(tmp_path: Path, processes: int) -> None:
    with small_disk(tmp_path / "disk", mebibytes=6) as disk:
        run = disk / "run"
        arguments = [*LONG, f"--procs={processes}", f"--run={run}", "--no-preflight"]
        process = subprocess.Popen(command("fit", *arguments, *QUIET), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        wait_until(lambda: bool(steps(run)), "no checkpoint came")
        filler = fill(disk, leave_bytes=200_000)  # less than one checkpoint, enough for words
        wait_until(lambda: "could not be written" in (run / "logs" / "rank-0.log").read_text(), "no save failed")
        older = steps(run)[-1]
        begun = status(run)["step"]
        wait_until(lambda: status(run)["step"] > begun + 60, "training does not go on")
        assert process.poll() is None
        assert steps(run)[-1] == older
        filler.unlink()
        wait_until(lambda: steps(run)[-1] > older, "no checkpoint came once there was room")

        fill(disk)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 1, out
        safe = steps(run)[-1]
        assert "No space left on device; it needs 0.7 MiB" in out
        assert f"the weights are safe in {run}/checkpoints/step-{safe:08d}" in " ".join(out.splitlines()[-4:])
        assert status(run)["state"] == "failed"
        recorded = [int(record["step"]) for record in metrics(run)]
        assert recorded == list(range(5, recorded[-1] + 1, 5))
        assert distrain("checkpoints", "verify", str(run), cwd=tmp_path).code == 0

        assert "Traceback" not in out
        filler.unlink()
        again = subprocess.Popen(
            command("fit", f"--run={run}", f"--procs={processes}", "--no-preflight", *QUIET), cwd=tmp_path
        )
        wait_until(lambda: steps(run)[-1] > safe, "the run does not go on")
        again.send_signal(signal.SIGTERM)
        assert again.wait(60) == 75


@pytest.mark.slow
def test_disk_without_a_single_free_block_does_not_end_the_training(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=6) as disk:
        run = disk / "run"
        arguments = [*LONG, "--procs=2", f"--run={run}", "--no-preflight"]
        with (tmp_path / "out").open("w") as out:
            process = subprocess.Popen(command("fit", *arguments, *QUIET), cwd=tmp_path, stdout=out, stderr=out)
        wait_until(lambda: bool(steps(run)), "no checkpoint came")
        filler = fill(disk)
        wait_until(lambda: "wait in memory" in (tmp_path / "out").read_text(), "the disk is not full")
        time.sleep(3)
        assert process.poll() is None, (tmp_path / "out").read_text()
        older = steps(run)[-1]
        filler.unlink()
        wait_until(lambda: steps(run)[-1] > older, "no checkpoint came once there was room")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
        recorded = [int(record["step"]) for record in metrics(run)]
        assert recorded == list(range(5, recorded[-1] + 1, 5))
        assert "Traceback" not in (tmp_path / "out").read_text()
