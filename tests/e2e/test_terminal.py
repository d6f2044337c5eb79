"""A training survives its terminal: its output is in the log."""

import re
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from distrain.system.process import state_of
from tests.cli_runner import QUIET, Launch, checkpoint_steps, command, heartbeat, status, wait_for_step, wait_until
from tests.screen import Screen
from tests.terminals import terminal

ENDLESS = ["--set=train.epochs=20000", "--set=log.every_steps=1000000", "--device=cpu", "--run=run"]
TALKING_NET = """
import subprocess
import sys
import time
from torch import nn
class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
        self.steps = 0
    def forward(self, images):
        if self.training:
            self.steps += 1
            sys.stdout.write(f"the user prints {self.steps}\\n")  # at once: two ranks write to one pipe
            if self.steps % 50 == 0:
                # One that writes at the very moment at which the terminal is closed may fail.
                subprocess.run(["echo", f"a child prints {self.steps}"], check=False)
            time.sleep(0.01)  # the terminal is closed long before the end
        return super().forward(images)
"""


def log_of(folder: Path) -> str:
    return (folder / "run" / "logs" / "rank-0.log").read_text()


def assert_logged_to_its_end(folder: Path, epochs: int) -> None:
    """Fail unless the log holds header, epochs and ending of a finished run, each line of them once."""
    log = log_of(folder)
    assert status(folder / "run")["state"] == "finished"
    for words in ("global batch 64", "run directory", "starts at step 0", "finished  top-1", "distrain runs show"):
        assert log.count(words) == 1, words
    for epoch in range(1, epochs + 1):
        assert log.count(f"epoch {epoch}/{epochs}  step") == 1


def assert_stopped(folder: Path) -> None:
    """Fail unless the run has saved at its last step, and its log says so."""
    found = status(folder / "run")
    assert found["state"] == "stopped"
    assert checkpoint_steps(folder / "run")[-1] == found["step"]
    assert f"stopped at step {found['step']} of" in log_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_run_that_ignores_the_hangup_continues_in_its_log_when_the_terminal_is_closed(
    tmp_path: Path, processes: int
) -> None:
    (tmp_path / "nets.py").write_text(TALKING_NET)
    arguments = ["--set=train.epochs=12", "--set=model.name=nets:Net", "--device=cpu", f"--procs={processes}"]
    argv = command("fit", *arguments, "--run=run", *QUIET)
    with terminal() as screen:
        process = screen.start(argv, cwd=tmp_path, prepare=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        wait_for_step(tmp_path / "run", 46)
        screen.wait_for("the user prints")
        for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # one of the user's
                one.send_signal(signal.SIGHUP)
        screen.close()
        assert process.wait(120) == 0
    assert_logged_to_its_end(tmp_path, 12)
    log = log_of(tmp_path)
    assert "the user prints 276\n" in log
    assert "a child prints 250\n" in log
    assert "\x1b" not in log


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_full_disk_under_the_output_changes_nothing(tmp_path: Path, processes: int) -> None:
    arguments = ["--set=train.epochs=2", "--device=cpu", f"--procs={processes}", "--run=run"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("fit", *arguments, *QUIET), cwd=tmp_path, stdout=full, stderr=full, timeout=120, check=False
        )
    assert done.returncode == 0
    assert_logged_to_its_end(tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_that_also_ends_the_reader_of_the_output_is_a_stop(
    launch: Launch, tmp_path: Path, processes: int
) -> None:
    """As in `distrain fit | tee log`."""
    process = launch(*ENDLESS, f"--procs={processes}", cwd=tmp_path)
    wait_for_step(tmp_path / "run", 30)
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(60) == 75
    assert_stopped(tmp_path)
    assert log_of(tmp_path).splitlines()[-1].endswith(f"resume with   distrain resume {tmp_path / 'run'}")


@pytest.mark.parametrize(("columns", "processes"), [(80, 1), pytest.param(60, 2, marks=pytest.mark.slow)])
def test_training_fits_into_its_terminal_and_leaves_whole_lines_in_it(
    tmp_path: Path, columns: int, processes: int
) -> None:
    """The run's name is short: paths are never cut, and a terminal that is narrower than one wraps it."""
    arguments = ["--set=train.epochs=3", "--device=cpu", f"--procs={processes}", "--run=run", *QUIET]
    with terminal(columns) as shown:
        process = shown.start(command("fit", *arguments), cwd=tmp_path)
        assert process.wait(120) == 0
        shown.wait_for("distrain runs show")
        screen = Screen(columns)
        screen.feed(shown.shown)
    words = ["loss", "top-1", "samples/s"]
    lines = [line for line in screen.lines if line and str(tmp_path) not in line]
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == [
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
    ]
    assert all(word in line for line in lines for word in words if line.startswith("epoch"))
    assert not any("ETA" in line for line in lines)
    assert "ETA" in shown.shown
    assert screen.num_wrapped <= 3  # the path of the run, three times
    log = log_of(tmp_path)
    for epoch in (1, 2, 3):
        assert re.search(
            rf"epoch {epoch}/3  step {23 * epoch}/69  loss .*  val loss .*  top-1 .*  .* samples/s$", log, re.M
        )
    assert status(tmp_path / "run")["epoch"] == 3.0


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_closed_terminal_is_a_stop(tmp_path: Path, processes: int) -> None:
    with terminal() as screen:
        process = screen.start(command("fit", *ENDLESS, f"--procs={processes}", *QUIET), cwd=tmp_path)
        wait_for_step(tmp_path / "run", 10)
        screen.close()
        assert process.wait(60) == 75
    assert_stopped(tmp_path)


@pytest.mark.slow
def test_ctrl_z_stops_all_ranks_and_fg_continues_them(tmp_path: Path) -> None:
    """In an interactive shell, which gives a job the terminal; when that is closed, the shell hangs its jobs up."""
    arguments = shlex.join(command("fit", *ENDLESS, "--procs=2", "--stall-timeout=4", *QUIET))
    with terminal() as screen:
        shell = screen.start(["bash", "--norc", "--noprofile", "-i"], cwd=tmp_path)
        screen.press(f"{arguments}\n")
        wait_for_step(tmp_path / "run", 10)
        ranks = [heartbeat(tmp_path / "run", rank)["pid"] for rank in (0, 1)]
        screen.press("\x1a")
        wait_until(lambda: [state_of(pid) for pid in ranks] == [psutil.STATUS_STOPPED] * 2, "the stop of both ranks")
        screen.wait_for("Stopped")
        step = heartbeat(tmp_path / "run", 1)["step"]
        time.sleep(6)  # longer than what counts as a stall
        assert heartbeat(tmp_path / "run", 1)["step"] == step
        screen.press("fg\n")
        wait_for_step(tmp_path / "run", step + 100)
        screen.close()
        shell.wait(60)
    wait_until(lambda: "distrain resume" in log_of(tmp_path), "the end")
    assert_stopped(tmp_path)
    assert "restart" not in screen.shown
    assert "stalled" not in screen.shown
    assert len(status(tmp_path / "run")["attempts"]) == 1
