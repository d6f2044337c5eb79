"""Runs the `distrain` command as a user would: in a process of its own, in a folder of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def fit(*arguments: str, cwd: Path, env: dict[str, str] | None = None, code: int = 0) -> Done:
    """Train without the sinks that a test does not look at; fails with the output if it ends with another code."""
    done = distrain("fit", *arguments, *QUIET, cwd=cwd, env=env)
    assert done.code == code, f"exit code {done.code}\n{done.out}\n{done.err}"
    return done


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
