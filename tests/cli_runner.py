"""Runs the `distrain` command as a user would: in a process and a folder of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.forks import run_module

# Metrics that depend on the time of day, and groups of metrics of the machine.
TIMES = {"time", "train/samples_per_s", "checkpoint/blocked_s"}
MACHINE = ("rank/", "node/", "gpu/")
QUIET = ["--set", "log.wandb=disabled", "--set", "log.tensorboard=false"]


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "distrain", *arguments]


def distrain(*arguments: str, cwd: Path, env: dict[str, str] | None = None, timeout_s: float = 240) -> Done:
    """Run a command to its end; a program of its own where `env` changes what libraries may read while they load."""
    if env is None:
        return Done(*run_module("distrain", arguments, cwd=cwd, timeout_s=timeout_s))
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def fit(*arguments: str, cwd: Path, env: dict[str, str] | None = None, code: int = 0, timeout_s: float = 240) -> Done:
    """Train without the loggers that a test does not look at; fails with the output if it ends with another code."""
    done = distrain("fit", *arguments, *QUIET, cwd=cwd, env=env, timeout_s=timeout_s)
    assert done.code == code, f"exit code {done.code}\n{done.out}\n{done.err}"
    return done


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Launch(Protocol):
    """Begins to train, and returns while that continues."""

    def __call__(self, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]: ...


def begin_fit(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("fit", *arguments, *QUIET),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_of(process: subprocess.Popen[str], timeout_s: float = 120) -> Done:
    out, _ = process.communicate(timeout=timeout_s)
    return Done(process.returncode, out, "")


def wait_until(happens: Callable[[], bool], what: str, timeout_s: float = 120, *, every_s: float = 0.02) -> None:
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline, f"{what} does not happen"
        time.sleep(every_s)


def wait_for_step(run: Path, step: int) -> None:
    wait_until(lambda: (run / "status.json").exists() and status(run)["step"] >= step, f"step {step} of {run}")


def heartbeat(run: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "heartbeats" / f"rank-{rank}.json").read_text())
    return found


def wait_for_phase(run: Path, phase: str) -> None:
    path = run / "heartbeats" / "rank-0.json"
    wait_until(lambda: path.exists() and heartbeat(run, 0)["phase"] == phase, f"{phase} in {run}")


def checkpoint_steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-????????"))


def comparable(run: Path) -> list[dict[str, float]]:
    """The metrics that must be the same in every repetition."""
    return [{k: v for k, v in record.items() if not depends_on_time(k)} for record in metrics(run)]


def depends_on_time(name: str) -> bool:
    return name in TIMES or name.startswith(MACHINE)
