"""Nodes whose clocks differ by minutes: what failed first is told first, and a stop is a stop."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli_runner import QUIET, command, end_of, status, wait_for_step

# Sets the clock of every process whose command line has these words in it.
SKEWED = """
import os, sys, time
if os.environ.get("SKEWED", "") in " ".join(sys.orig_argv) and "SKEW_S" in os.environ:
    right = time.time
    time.time = lambda: right() + float(os.environ["SKEW_S"])
"""
FAILING_LOSS = """
import os, torch
CALLS = []
def loss(logits, targets):
    CALLS.append(1)
    if os.environ["RANK"] == "1" and len(CALLS) > 20:
        raise ValueError("the label is bad")
    return torch.nn.functional.cross_entropy(logits, targets)
"""
PORT = 29440


def skewed(folder: Path, seconds: float, *, words: str = "") -> dict[str, str]:
    """The environment in which clocks are so much off."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(SKEWED)
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "SKEW_S": str(seconds), "SKEWED": words}


def begin(
    folder: Path, arguments: list[str], env: dict[str, str], *, hostname: str | None = None
) -> subprocess.Popen[str]:
    words = command("fit", *arguments, *QUIET)
    if hostname is not None:
        words = ["unshare", "--uts", "sh", "-c", f'hostname {hostname}; exec "$@"', "sh", *words]
    out = subprocess.PIPE
    return subprocess.Popen(
        words, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [-120.0, 120.0])
def test_failure_on_a_machine_with_another_time_is_told_before_what_followed_from_it(
    tmp_path: Path, seconds: float
) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, for a second host name")
    (tmp_path / "failing.py").write_text(FAILING_LOSS)
    arguments = ["--set=loss={name: 'failing:loss'}", "--device=cpu", "--procs=1", "--nodes=2", "--run=run"]
    meeting = ["--restarts=1", f"--rendezvous=127.0.0.1:{PORT}"]
    first = begin(tmp_path, [*arguments, *meeting, "--node-rank=0"], dict(os.environ))
    second = begin(tmp_path, [*arguments, *meeting, "--node-rank=1"], skewed(tmp_path, seconds), hostname="node1")
    for process in (first, second):
        done = end_of(process)
        assert done.code == 1, done.out
        assert "on rank 1 (node1): ValueError: the label is bad" in done.out


@pytest.mark.slow
def test_stop_is_one_also_where_the_ranks_live_before_their_launcher(tmp_path: Path) -> None:
    env = skewed(tmp_path, -600.0, words="distrain.fork_server")
    process = begin(tmp_path, ["--set=train.epochs=2000", "--procs=2", "--run=run"], env)
    wait_for_step(tmp_path / "run", 5)
    process.send_signal(signal.SIGTERM)
    done = end_of(process)
    assert done.code == 75, done.out
    assert status(tmp_path / "run")["state"] == "stopped"
    assert "stopped at step" in done.out
