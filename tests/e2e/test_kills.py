"""SIGKILL of any process of a run, at random moments, never changes its result."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from distrain.runs.directory import RunDirectory
from tests.cli_runner import (
    Launch,
    checkpoint_steps,
    comparable,
    distrain,
    fit,
    heartbeat,
    metrics,
    status,
    wait_for_step,
    wait_until,
)

RECIPE = [
    "digits",
    "--set=data.batch_size=96",
    "--set=data.num_workers=1",
    "--set=data.loader=processes",
    "--set=train.micro_batch_size=24",
    "--set=augment.train=[RandomCrop: {size: 8, padding: 1}]",
    "--set=log.every_steps=11",
    "--set=checkpoint.every_steps=7",
    "--procs=2",
]
START_UP_S = 6.0  # from the command to the first step, about


def kill_somebody(process: subprocess.Popen[str], run: Path, chance: random.Random) -> str:
    """SIGKILL the launcher or a rank at a random moment; returns what was done, for whoever reads a failure.

    The run must be long enough to be hit. A rank that is not there yet is spared, and the launcher killed for it.
    """
    target = chance.choice(["launcher", "rank 0", "rank 1"])
    phase = chance.choice(["start-up", "steps", "steps", "save"])  # with an evaluation every 15 steps, a save every 7
    delay_s = chance.uniform(0, {"start-up": START_UP_S, "steps": 2.0, "save": 0.02}[phase])
    if phase != "start-up":
        before = len(status(run)["attempts"]) if (run / "status.json").exists() else 0
        while process.poll() is None and not is_running(run, before):
            time.sleep(0.01)
    if phase == "save":
        while process.poll() is None and not drafts(run):
            time.sleep(0.0005)
    time.sleep(delay_s)
    pid = None if target == "launcher" else rank_pid(run, int(target[-1]))
    if pid is None:
        target, pid = "launcher", process.pid
    assert process.poll() is None, f"the run ended before its {target} was killed in {phase}: give it more epochs"
    under_way = f", {', '.join(draft.name for draft in drafts(run))} under way" if drafts(run) else ""
    os.kill(pid, signal.SIGKILL)
    return f"{target} in {phase} after {delay_s:.3f} s{under_way}"


def is_running(run: Path, attempts_before: int) -> bool:
    if not (run / "status.json").exists():
        return False
    found = status(run)
    return len(found["attempts"]) > attempts_before and found["state"] == "running"


def drafts(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("*.tmp"))


def rank_pid(run: Path, rank: int) -> int | None:
    """The process of a rank of this very attempt; None while it is not there yet."""
    try:
        pid: int = heartbeat(run, rank)["pid"]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return None
    return pid if b"distrain." in command else None


@pytest.mark.parametrize(
    ("kills", "epochs"),
    [
        pytest.param(4, 40, marks=pytest.mark.slow),
        pytest.param(50, 60, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_run_killed_at_random_ends_in_the_bits_of_the_undisturbed_run(
    tmp_path: Path, launch: Launch, kills: int, epochs: int
) -> None:
    chance = random.Random(seed := time.time_ns())
    arguments = [*RECIPE, f"--set=train.epochs={epochs}"]
    fit(*arguments, "--run=undisturbed", cwd=tmp_path, timeout_s=1200)
    run = tmp_path / "killed"
    done: list[str] = []
    for _ in range(kills):
        process = launch(*arguments, "--restarts=0", "--run=killed", cwd=tmp_path)
        done.append(kill_somebody(process, run, chance))
        out, _ = process.communicate(timeout=120)
        done[-1] += f", ended with {process.returncode}, checkpoints {checkpoint_steps(run)}"
        assert process.returncode in {-signal.SIGKILL, 0, 1}, f"seed {seed}\n{done}\n{out}"
    last = fit(*arguments, "--restarts=0", "--run=killed", cwd=tmp_path, timeout_s=1200)
    whole, pieced = status(tmp_path / "undisturbed"), status(run)
    story = "\n".join([f"seed {seed}", *done, last.out])
    assert pieced["state"] == "finished", story
    assert pieced["weights_digest"] == whole["weights_digest"], story
    assert pieced["state_digest"] == whole["state_digest"], story
    assert comparable(run) == comparable(tmp_path / "undisturbed"), story
    steps = [record["step"] for record in metrics(run)]
    assert steps == sorted(set(steps)), story
    print(story)


def test_every_command_says_at_once_that_a_killed_run_died(tmp_path: Path, launch: Launch) -> None:
    run = tmp_path / "runs" / "killed"
    process = launch("--run=runs/killed", "--device=cpu", "--procs=2", "--set=train.epochs=4000", cwd=tmp_path)
    wait_for_step(run, 40)
    assert "running" in distrain("runs", cwd=tmp_path).out
    process.kill()
    process.wait()
    wait_until(lambda: not RunDirectory(run).is_held, "the end of the ranks")
    shown, followed = distrain("runs", "show", "killed", cwd=tmp_path), distrain("logs", "killed", "-f", cwd=tmp_path)
    asked = distrain("stop", "killed", cwd=tmp_path)
    assert "died" in distrain("runs", cwd=tmp_path).out.splitlines()[1].split()
    assert shown.out.splitlines()[0] == "killed  died"
    assert json.loads(distrain("runs", "--json", cwd=tmp_path).out)[0]["state"] == "died"
    assert asked.err.startswith("distrain: run killed is not running: it died at step")
    assert followed.err == asked.err
