"""A plan is started as a program, or as a fork of a process that has imported torch."""

import dataclasses
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from distrain.config.profile import Profile
from distrain.launchers import torchrun
from distrain.launchers.plan import Plan
from distrain.launchers.spawn import ProcessSpawner
from distrain.system.process import descendants, state_of
from tests.cli_runner import Launch, distrain, end_of, status, wait_for_step

TWO = Profile(launcher="torchrun", device="cpu", processes=2, threads=1)


@pytest.fixture(scope="module")
def ended_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two processes, which takes no further step."""
    quick = ["--set=log={wandb: disabled, tensorboard: false}", "--set=train.max_steps=1"]
    folder = tmp_path_factory.mktemp("ended")
    assert distrain("fit", *quick, "--procs=2", "--run=run", cwd=folder).code == 0
    return folder / "run"


def test_torchrun_runs_in_forks_of_one_server_until_the_environment_changes(ended_run: Path, tmp_path: Path) -> None:
    plan = torchrun.plan(TWO, ended_run)
    servers = []
    with closing(ProcessSpawner(tmp_path / "log")) as starter:
        for env in (plan.env, plan.env, {**plan.env, "DISTRAIN_TEST": "other"}):
            child = starter.start(dataclasses.replace(plan, env=env))
            assert child.poll() is None
            assert child.wait(60) == 0, (tmp_path / "log").read_text()
            assert child.poll() == 0
            assert starter._server is not None
            servers.append(starter._server._process.pid)
    assert servers[0] == servers[1] != servers[2]
    assert [state_of(pid) for pid in servers] == [None, None, None]


def test_killed_fork_and_timeout_are_reported_as_for_a_program(ended_run: Path, tmp_path: Path) -> None:
    plan = torchrun.plan(TWO, ended_run)
    with closing(ProcessSpawner(tmp_path / "log")) as starter:
        child = starter.start(plan)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.01)
        server = child.pid
        while child.pid == server:
            assert child.poll() is None
        child.kill()
        assert child.wait(10) == -9
        child.kill()


def test_ranks_die_with_a_killed_server(launch: Launch, tmp_path: Path) -> None:
    process = launch("--set=train.epochs=100000", "--procs=2", "--restarts=0", "--run=run", cwd=tmp_path)
    wait_for_step(tmp_path / "run", 1)
    pids = descendants(process.pid)
    os.kill(pids[0], signal.SIGKILL)
    done = end_of(process)
    assert done.code == 1, done.out
    assert len(pids) == 4
    assert {state_of(pid) for pid in pids} <= {None, psutil.STATUS_ZOMBIE}


def test_failing_server_ends_the_child_and_its_error_is_logged(tmp_path: Path) -> None:
    plan = torchrun.plan(TWO, tmp_path / "nothing")
    with closing(ProcessSpawner(tmp_path / "log")) as starter:
        for _ in range(2):
            child = starter.start(plan)
            assert child.wait(60) == 1
            child.kill()
    assert (tmp_path / "log").read_text().count("recipe.yaml does not exist") == 2


def test_other_plans_are_separate_programs(tmp_path: Path) -> None:
    words = "import os, sys; print(os.environ['WORD'], os.getcwd(), file=sys.stderr); sys.exit(3)"
    plan = Plan((sys.executable, "-c", words), cwd=tmp_path, env={"WORD": "hello"})
    with closing(ProcessSpawner(tmp_path / "log")) as starter:
        assert starter.start(plan).wait(60) == 3
    assert (tmp_path / "log").read_text() == f"hello {tmp_path}\n"


def test_agent_by_itself_is_torchrun(ended_run: Path) -> None:
    arguments = torchrun.plan(TWO, ended_run).torchrun
    assert arguments is not None
    command = [sys.executable, "-u", "-m", "distrain.fork_server", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert status(ended_run)["attempts"][-1]["world_size"] == 2
