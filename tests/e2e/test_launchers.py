"""Every launch profile that this machine can run starts the same training."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.cli_runner import (
    Launch,
    checkpoint_steps,
    comparable,
    distrain,
    end_of,
    fit,
    heartbeat,
    status,
    wait_for_step,
    wait_until,
)

RECIPE = ["--set=train.max_steps=30", "--set=train.threads=1", "--set=checkpoint.every_steps=10", "--run=run"]
ENDLESS = ["--set=train.epochs=20000", "--set=checkpoint.every_epochs=null", "--set=eval.every_epochs=null"]


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    fit(*RECIPE, "--launch=cpu-2", cwd=folder)
    return folder / "run"


@pytest.mark.parametrize(
    "words",
    [["--launch=accelerate-cpu-2"], pytest.param(["--launcher=accelerate", "--procs=2"], marks=pytest.mark.slow)],
)
def test_accelerate_trains_the_same_bits_as_torchrun(tmp_path: Path, torchrun: Path, words: list[str]) -> None:
    fit(*RECIPE, *words, cwd=tmp_path)
    assert status(tmp_path / "run")["attempts"][0]["world_size"] == 2
    assert status(tmp_path / "run")["weights_digest"] == status(torchrun)["weights_digest"]
    assert comparable(tmp_path / "run") == comparable(torchrun)


@pytest.mark.slow
def test_one_process_trains_the_same_whoever_starts_it(tmp_path: Path) -> None:
    digests = set()
    for launcher in ("inprocess", "torchrun", "accelerate"):
        (tmp_path / launcher).mkdir()
        fit(*RECIPE, f"--launcher={launcher}", "--device=cpu", cwd=tmp_path / launcher)
        digests.add(status(tmp_path / launcher / "run")["weights_digest"])
    fit(*RECIPE, "--launch=debug", cwd=tmp_path)
    assert digests == {status(tmp_path / "run")["weights_digest"]}


@pytest.mark.slow
def test_single_process_started_by_accelerate_instead_of_two_is_reported(tmp_path: Path, torchrun: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}"]
    done = subprocess.run(
        [*command, "-m", "distrain.worker", str(torchrun)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "distrain: 2 processes were requested and 1 started; start the run with `distrain fit`\n" in done.stderr


@pytest.mark.slow
def test_accelerates_multi_cpu_file_starts_all_its_processes(tmp_path: Path, torchrun: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
    fit(*RECIPE, f"--launch={config}", cwd=tmp_path)
    assert status(tmp_path / "run")["weights_digest"] == status(torchrun)["weights_digest"]


@pytest.mark.slow
def test_rank_that_dies_under_accelerate_is_replaced_and_the_run_can_be_stopped(launch: Launch, tmp_path: Path) -> None:
    process = launch(
        *ENDLESS, "--set=checkpoint.every_steps=20", "--launch=accelerate-cpu-2", "--run=run", cwd=tmp_path
    )
    run = tmp_path / "run"
    wait_until(lambda: checkpoint_steps(run)[-1:] >= [20], "a checkpoint")
    os.kill(heartbeat(run, 1)["pid"], signal.SIGKILL)
    wait_until(lambda: len(status(run)["attempts"]) == 2 and status(run)["state"] == "running", "the restart")
    assert distrain("stop", "run", "--wait", cwd=tmp_path).code == 0
    done = end_of(process)
    assert done.code == 75, done.out
    assert "rank 1 failed at step" in done.out
    assert "(Killed" in done.out


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["distrain", "accelerate"])
def test_killed_launcher_of_accelerate_leaves_no_orphan(launch: Launch, tmp_path: Path, killed: str) -> None:
    process = launch(*ENDLESS, "--launch=accelerate-cpu-2", "--restarts=0", "--run=run", cwd=tmp_path)
    wait_for_step(tmp_path / "run", 5)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3
    (process if killed == "distrain" else family[0]).kill()
    end_of(process)
    wait_until(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], "the end", 10)
    assert status(tmp_path / "run")["state"] == ("running" if killed == "distrain" else "failed")


@pytest.mark.slow
def test_two_runs_under_accelerate_at_once_do_not_meet(launch: Launch, tmp_path: Path) -> None:
    both = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        both.append(launch(*RECIPE, "--launch=accelerate-cpu-2", cwd=tmp_path / name))
    assert [end_of(process).code for process in both] == [0, 0]
    assert status(tmp_path / "a" / "run")["weights_digest"] == status(tmp_path / "b" / "run")["weights_digest"]
