"""A run that is requested to stop, by any means and at any moment, saves and exits resumable."""

import os
import signal
import subprocess
import time
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
    wait_for_phase,
    wait_for_step,
    wait_until,
)

# Nothing is due for hours: only a request ends it.
ENDLESS = [
    "--set=train.epochs=20000",
    "--set=log.every_steps=1000000",
    "--set=eval.every_epochs=null",
    "--set=checkpoint.every_epochs=null",
    "--run=run",
]
WORKERS = ["--set=data.num_workers=2", "--set=data.loader=processes"]
SLOW_NET = """
import time
from torch import nn
passes = []  # the first of them are tried before the training begins
class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, num_classes))
    def forward(self, images):
        if not self.training:
            time.sleep(EVALUATE_S)
        passes.append(1)
        return super().forward(images)
    def state_dict(self, *args, **kwargs):
        time.sleep(SAVE_S if len(passes) > 10 else 0)
        return super().state_dict(*args, **kwargs)
"""


def slow_net(folder: Path, *, evaluate_s: float = 0.0, save_s: float = 0.0) -> str:
    code = SLOW_NET.replace("EVALUATE_S", str(evaluate_s)).replace("SAVE_S", str(save_s))
    (folder / "nets.py").write_text(code)
    return "--set=model.name=nets:Net"


def assert_stopped(done_code: int, out: str, run: Path) -> int:
    assert done_code == 75, out
    found = status(run)
    assert found["state"] == "stopped"
    assert found["attempts"][-1]["state"] == "stopped"
    assert not list((run / "errors").iterdir())
    assert not (run / "stop").exists()
    assert f"stopped at step {found['step']} of" in out
    return int(found["step"])


def test_distrain_stop_ends_a_run_between_two_log_lines_and_says_where(launch: Launch, tmp_path: Path) -> None:
    process = launch(*ENDLESS, "--procs=2", cwd=tmp_path)
    wait_for_step(tmp_path / "run", 10)
    stopped = distrain("stop", "run", "--wait", cwd=tmp_path)
    done = end_of(process)
    step = assert_stopped(done.code, done.out, tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run") == [step]
    assert stopped.code == 0
    assert f"stopped at step {step} of" in stopped.out

    again = distrain("stop", "run", cwd=tmp_path)
    assert again.code == 2
    assert f"run run is not running: it was stopped at step {step} of" in again.err
    assert "`distrain resume" in again.err


@pytest.mark.parametrize(
    ("target", "number"),
    [
        pytest.param("rank 1", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("rank 0", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("rank 1", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("launcher", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("launcher", signal.SIGINT, marks=pytest.mark.slow),
        ("everyone", signal.SIGTERM),
    ],
)
def test_signal_to_any_process_stops_all_ranks(
    launch: Launch, tmp_path: Path, target: str, number: signal.Signals
) -> None:
    process = launch(*ENDLESS, "--procs=2", *WORKERS, cwd=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 10)
    if target == "everyone":
        for child in psutil.Process(process.pid).children(recursive=True):
            child.send_signal(number)
        process.send_signal(number)
    else:
        os.kill(process.pid if target == "launcher" else heartbeat(run, int(target[-1]))["pid"], number)
    done = end_of(process)
    step = assert_stopped(done.code, done.out, run)
    assert checkpoint_steps(run) == [step]


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_stop_during_start_up_takes_no_step_and_can_be_resumed(launch: Launch, tmp_path: Path, processes: int) -> None:
    process = launch("--set=train.max_steps=5", "--run=run", f"--procs={processes}", cwd=tmp_path)
    run = tmp_path / "run"
    wait_until(lambda: (run / "heartbeats").is_dir() and any((run / "heartbeats").iterdir()), "a heartbeat")
    os.kill(heartbeat(run, 0)["pid"] if (run / "heartbeats" / "rank-0.json").exists() else process.pid, signal.SIGTERM)
    done = end_of(process)
    assert assert_stopped(done.code, done.out, run) == 0
    assert checkpoint_steps(run) == []
    if processes == 1:
        fit("--run=run", cwd=tmp_path)
        assert status(run)["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_interrupted_by_a_stop_is_repeated(launch: Launch, tmp_path: Path, processes: int) -> None:
    net = slow_net(tmp_path, evaluate_s=0.3)
    arguments = [net, "--set=train.max_steps=20", "--set=log.every_steps=7", "--set=eval.every_steps=7"]
    arguments += ["--set=eval.every_epochs=null", "--set=eval.batch_size=36", f"--procs={processes}"]
    process = launch(*arguments, "--run=run", cwd=tmp_path)
    run = tmp_path / "run"
    wait_for_phase(run, "evaluate")
    process.send_signal(signal.SIGTERM)
    done = end_of(process)
    step = assert_stopped(done.code, done.out, run)
    assert checkpoint_steps(run)[-1] == step == 7
    assert comparable(run) == []

    slow_net(tmp_path)
    fit("--run=run", f"--procs={processes}", cwd=tmp_path)
    fit(*arguments, "--run=undisturbed", cwd=tmp_path)
    assert comparable(run) == comparable(tmp_path / "undisturbed")
    assert status(run)["best"] == status(tmp_path / "undisturbed")["best"]
    assert status(run)["weights_digest"] == status(tmp_path / "undisturbed")["weights_digest"]


@pytest.mark.slow
@pytest.mark.parametrize("save_s", [3, pytest.param(45, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
def test_save_in_progress_is_finished_and_no_step_follows(launch: Launch, tmp_path: Path, save_s: int) -> None:
    """Longer than the 30 s after which torchrun would kill the ranks it has been told to end."""
    net = slow_net(tmp_path, save_s=save_s)
    arguments = [*ENDLESS, net, "--set=checkpoint.every_steps=10", "--procs=2", f"--stall-timeout={save_s / 1.5}"]
    process = launch(*arguments, cwd=tmp_path)
    run = tmp_path / "run"
    wait_for_phase(run, "save")
    asked = time.monotonic()
    for child in psutil.Process(process.pid).children(recursive=True):
        child.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    done = end_of(process, timeout_s=200)
    assert assert_stopped(done.code, done.out, run) == 10
    assert checkpoint_steps(run) == [10]
    assert time.monotonic() - asked > save_s / 3


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_second_ctrl_c_leaves_no_process_no_port_and_no_shared_memory(
    launch: Launch, tmp_path: Path, processes: int
) -> None:
    shared = set(Path("/dev/shm").iterdir())
    net = slow_net(tmp_path, save_s=60)
    process = launch(*ENDLESS, net, f"--procs={processes}", *WORKERS, cwd=tmp_path)
    wait_for_step(tmp_path / "run", 10)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= processes * 2
    ports = {c.laddr.port for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    assert processes == 1 or ports
    process.send_signal(signal.SIGINT)
    wait_for_phase(tmp_path / "run", "save")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    done = end_of(process, timeout_s=10)
    assert done.code == 130
    assert "killed" in done.out
    assert "distrain resume" in done.out
    assert status(tmp_path / "run")["state"] == "failed"
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    listening = {c.laddr.port for c in psutil.net_connections() if c.status == psutil.CONN_LISTEN}
    assert not ports & listening
    left = set(Path("/dev/shm").iterdir()) - shared
    assert not [path for path in left if any(str(p.pid) in path.name for p in family)]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("moment", ["start", pytest.param("training", marks=pytest.mark.slow)])
def test_signals_that_never_end_do_not_change_the_exit_code(
    launch: Launch, tmp_path: Path, processes: int, moment: str
) -> None:
    """They come from when the run directory is there, or from a step on, until the process is gone."""
    process = launch(*ENDLESS, f"--procs={processes}", cwd=tmp_path)
    run = tmp_path / "run"
    if moment == "start":
        wait_until(run.is_dir, "the run directory", every_s=0.0001)
    else:
        wait_for_step(run, 10)
    while process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            process.send_signal(number)
        is_saved = (run / "status.json").exists() and status(run)["state"] == "stopped"
        for _ in range(10 * is_saved):
            process.send_signal(signal.SIGINT)  # before, the second one would kill
        time.sleep(0.0005)
    done = end_of(process)
    assert_stopped(done.code, done.out, run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_at_the_end_of_a_stop_do_not_change_the_exit_code_in_ten_runs(
    launch: Launch, tmp_path: Path, processes: int, number: signal.Signals
) -> None:
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = launch(*ENDLESS, f"--procs={processes}", cwd=folder)
        wait_for_step(folder / "run", 3)
        process.send_signal(number)
        wait_until(lambda: status(folder / "run")["state"] == "stopped", "the stop", every_s=0.0005)  # noqa: B023
        while process.poll() is None:
            process.send_signal(number)
        done = end_of(process)
        assert_stopped(done.code, done.out, folder / "run")


@pytest.mark.parametrize("moment", ["training", pytest.param("start-up", marks=pytest.mark.slow)])
def test_killed_launcher_leaves_no_orphan(launch: Launch, tmp_path: Path, moment: str) -> None:
    process = launch(*ENDLESS, "--procs=2", *WORKERS, cwd=tmp_path)
    if moment == "training":
        wait_for_step(tmp_path / "run", 10)
    else:
        wait_until(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 3, "the ranks' start")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3
    process.kill()
    end_of(process)
    wait_until(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], "the end", 10)
    assert distrain("stop", "run", cwd=tmp_path).code == 2
    command_lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in command_lines


# What NCCL does: a reduction is only enqueued, and the host runs ahead of its device by up to ten steps. Rank 0 is late
# with its data now and then.
UNBLOCKING = """
import os, time
from collections import deque
from torch import nn
import torch.distributed as dist
from distrain.distributed.parallelize import flat

class Enqueueing:
    pending = deque()

    def __getattr__(self, name):
        return getattr(dist, name)

    def all_reduce(self, tensor):
        self.pending.append(dist.all_reduce(tensor.clone(), async_op=True))
        if len(self.pending) > 10:
            self.pending.popleft().wait()
        time.sleep(0.03 if os.environ["RANK"] == "0" and len(self.pending) % 7 == 3 else 0.002)

flat.dist = Enqueueing()

def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [20, 31, 42, 53])
def test_stop_works_where_reductions_do_not_block_the_host(launch: Launch, tmp_path: Path, step: int) -> None:
    (tmp_path / "nets.py").write_text(UNBLOCKING)
    net = ["--set=model.name=nets:net", "--set=model.arguments={}"]
    process = launch(*ENDLESS, *net, "--procs=2", "--stall-timeout=20", cwd=tmp_path)
    wait_for_step(tmp_path / "run", step)
    (tmp_path / "run" / "stop").touch()
    done = end_of(process)
    assert checkpoint_steps(tmp_path / "run") == [assert_stopped(done.code, done.out, tmp_path / "run")]
