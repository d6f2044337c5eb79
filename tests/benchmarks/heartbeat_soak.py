"""Trains on gloo ranks with a heartbeat hundreds of times as fast, asks for stacks all the while, then stops the run.

    python -m tests.benchmarks.heartbeat_soak --minutes 20

Nothing may fail: no rank dies, no round of a loop that a run depends on raises, every rank answers. Then the run is
resumed at ordinary intervals and stopped, and the seconds until that was heard and until it had ended are printed.
Ends with exit code 1 at the first fault.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distrain.runs.directory import RunDirectory
from distrain.runs.stacks import MAIN_THREAD, read_stacks
from tests.cli_runner import QUIET, command, wait_until

FAST = """
import os
from torch import nn
from distrain.training import heartbeat, stop_listener
if "SOAK_FAST" in os.environ:
    heartbeat.HEARTBEAT_S = stop_listener.POLL_S = 0.002
def network(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""
SETTINGS = ["--set=model.name=soak:network", "--set=train.epochs=1000000", "--set=checkpoint.every_minutes=1"]
SETTINGS += ["--set=checkpoint.every_epochs=null", "--set=eval.every_epochs=5000", "--set=log.every_steps=2000"]
HEARD_WITHIN_S = 1.0
STOPPED = 75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "soak.py").write_text(FAST)
        fast_steps = soak(folder, minutes=given.minutes, processes=given.processes)
        heard_s, ended_s = stop_at_ordinary_intervals(folder, processes=given.processes, after=fast_steps)
    print(f"a stop was heard after {heard_s:.2f} s, and all was saved and ended after {ended_s:.2f} s")
    sys.exit(heard_s > HEARD_WITHIN_S)


def soak(folder: Path, *, minutes: float, processes: int) -> int:
    """Train with the fast heartbeat and ask for stacks; returns the steps taken."""
    run, training = begin(folder, processes=processes, is_fast=True)
    wait_until(lambda: run.read_status().step > 0, "the first step")
    begun, answers, requests = time.monotonic(), 0, 0
    while time.monotonic() - begun < 60 * minutes:
        assert training.poll() is None, f"the training ended with {training.returncode}:\n{read_logs(run)}"
        found = read_stacks(run, world_size=processes, all_threads=requests % 4 == 0)
        requests += processes
        answers += sum(MAIN_THREAD in stack.threads for stack in found)
        time.sleep(0.2)
    run.stop.touch()
    assert training.wait(120) == STOPPED, read_logs(run)
    steps = run.read_status().step
    assert answers == requests, f"{requests - answers} of {requests} requests for a stack were not answered"
    assert "failed once" not in read_logs(run), read_logs(run)
    print(f"{minutes:g} min, {processes} ranks, {steps} steps, {answers} stacks: no fault", flush=True)
    return steps


def stop_at_ordinary_intervals(folder: Path, *, processes: int, after: int) -> tuple[float, float]:
    """Go on with the run and stop it; returns the seconds until that was heard, and until it had ended."""
    run, training = begin(folder, processes=processes, is_fast=False)
    wait_until(lambda: run.read_status().step > after + 100, "steps of the resumed run")
    asked = time.monotonic()
    run.stop.touch()
    wait_until(lambda: run.read_status().state in {"stopping", "stopped"}, "the stop", every_s=0.005)
    heard_s = time.monotonic() - asked
    assert training.wait(120) == STOPPED, read_logs(run)
    return heard_s, time.monotonic() - asked


def begin(folder: Path, *, processes: int, is_fast: bool) -> tuple[RunDirectory, "subprocess.Popen[bytes]"]:
    environment = {**os.environ, **({"SOAK_FAST": "1"} if is_fast else {})}
    arguments = ["digits", "--run=run", "--restarts=0", f"--procs={processes}", "--device=cpu", *SETTINGS, *QUIET]
    training = subprocess.Popen(command("fit", *arguments), cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    return RunDirectory(folder / "run"), training


def read_logs(run: RunDirectory) -> str:
    return "\n".join(path.read_text(errors="replace") for path in run.logs.iterdir())


if __name__ == "__main__":
    main()
