"""Trains some steps of a recipe in several scenarios and compares the results, for `distrain verify`."""

import itertools
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrain.errors import RunError
from distrain.messages import PREFIX, counted
from distrain.runs.checkpoints import committed
from distrain.runs.directory import RunDirectory

KILL_ATTEMPTS = 3


@dataclass(frozen=True)
class Scenario:
    """One scenario: the processes of its first part, and of its second if it is killed in between."""

    title: str
    processes: tuple[int, ...]
    must_match: bool  # whether it is guaranteed to give the same bits as the first scenario


@dataclass(frozen=True)
class Finding:
    """The result of one scenario, compared with the first one."""

    title: str
    must_match: bool
    has_same_weights: bool
    has_same_state: bool
    first_other_loss: int | None  # the first step whose loss has other bits
    largest_loss_difference: float  # relative
    has_same_evaluation: bool

    @property
    def is_identical(self) -> bool:
        """Whether weights, buffers, optimizer state, averages, every step's loss and the evaluation are the same."""
        has_same_losses = self.first_other_loss is None
        return self.has_same_weights and self.has_same_state and has_same_losses and self.has_same_evaluation


def scenarios(processes: list[int], *, is_exact: bool) -> list[Scenario]:
    """Return the scenarios: uninterrupted first, then killed and resumed, then on other numbers of processes."""
    first, *others = processes
    found = [
        Scenario(f"on {_count(first)}, uninterrupted", (first,), must_match=True),
        Scenario(f"on {_count(first)}, killed and resumed", (first, first), must_match=True),
    ]
    for other in others:
        found.append(Scenario(f"on {_count(other)}", (other,), must_match=is_exact))
        found.append(Scenario(f"on {_count(first)}, killed, resumed on {other}", (first, other), must_match=is_exact))
    return found


def train(scenario: Scenario, folder: Path, arguments: list[str], *, steps: int, device: str) -> RunDirectory:
    """Train one scenario in separate processes, and return its run directory.

    Raises `RunError` with the message of the run where it fails, or where it ends before it could be killed.
    """
    options = [
        *arguments,
        *(f"--set=train.max_steps={steps}", f"--set=checkpoint.every_steps={max(1, steps // 3)}"),
        *("--set=log.every_steps=1", "--set=log.tensorboard=false", "--set=log.wandb=disabled"),
    ]
    for attempt in range(KILL_ATTEMPTS):
        run = RunDirectory(folder / f"attempt-{attempt}")
        was_killed = True
        for number, processes in enumerate(scenario.processes):
            is_last = number == len(scenario.processes) - 1
            command = [sys.executable, "-m", "distrain", "fit", *options, f"--run={run.path}"]
            command += [f"--gpus={processes}"] if device == "cuda" else ["--device=cpu", f"--procs={processes}"]
            was_killed = _run(command, run, is_to_be_killed=not is_last) and was_killed
        if was_killed:
            return run
    raise RunError(f"the run ended before it could be killed; use more than --steps {steps}")


def compare(scenario: Scenario, run: RunDirectory, first: RunDirectory) -> Finding:
    """Compare the results of a scenario with those of the first one, to the bit."""
    ours, theirs = run.read_status(), first.read_status()
    differences = list(_loss_differences(run, first))
    return Finding(
        title=scenario.title,
        must_match=scenario.must_match,
        has_same_weights=ours.weights_digest == theirs.weights_digest,
        has_same_state=ours.state_digest == theirs.state_digest,
        first_other_loss=next((step for step, difference in differences if difference != 0), None),
        largest_loss_difference=max((difference for _, difference in differences), default=math.inf),
        has_same_evaluation=_evaluations(run) == _evaluations(first),
    )


def _run(command: list[str], run: RunDirectory, *, is_to_be_killed: bool) -> bool:
    """Run the command to its end, or kill it after its first checkpoint; returns False where that was too late."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        while is_to_be_killed and process.poll() is None and not committed(run.checkpoints):
            time.sleep(0.001)
        if is_to_be_killed and process.poll() is None:
            process.kill()
            process.communicate()
            return True
        output, _ = process.communicate()
    except BaseException:  # Ctrl-C: the process would write to a folder that is deleted
        process.kill()
        process.wait()
        raise
    if process.returncode != 0:
        lines = output.strip().splitlines()
        raise RunError(
            f"the training ended with exit code {process.returncode}: {lines[-1].removeprefix(PREFIX) if lines else ''}"
        )
    return not is_to_be_killed


def _loss_differences(run: RunDirectory, first: RunDirectory) -> Iterator[tuple[int, float]]:
    nothing: dict[str, Any] = {}
    for ours, theirs in itertools.zip_longest(run.read_metrics(), first.read_metrics(), fillvalue=nothing):
        before, now = theirs.get("train/loss"), ours.get("train/loss")
        if before is None or now is None or ours["step"] != theirs["step"]:
            yield int({**ours, **theirs}["step"]), math.inf
        else:
            yield int(ours["step"]), abs(now - before) / max(abs(before), 1e-30)


def _evaluations(run: RunDirectory) -> list[str]:
    """Return the results of each evaluation as text, in which NaN is equal to itself."""
    found = [record for record in run.read_metrics() if "val/loss" in record]
    return [repr({k: v for k, v in record.items() if k == "step" or k.startswith("val/")}) for record in found]


def _count(processes: int) -> str:
    return counted(processes, "process", "processes")
