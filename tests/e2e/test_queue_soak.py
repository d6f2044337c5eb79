"""A long queue on two slots, with kills at random of jobs, of `serve`, and of both: nothing is lost or runs twice."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import pytest

from distrain.runs.directory import RunDirectory
from tests.cli_runner import QUIET, distrain, fit, status
from tests.e2e.test_queue import Queue, is_over, state

RECIPE = ["digits", "--device=cpu", *QUIET, "--set=train.epochs=2", "--set=checkpoint.every_steps=4"]
# How the jobs differ, and how many there are of each: their seed and their number of processes.
KINDS = {(0, 1): 60, (1, 1): 60, (2, 1): 60, (3, 2): 20}
KILL_SHARE = 0.2  # of the looks at the queue


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    found = Queue(tmp_path)
    yield found
    found.end()


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_two_hundred_jobs_with_random_kills_end_as_if_undisturbed(queue: Queue) -> None:
    draw = random.Random(20)
    expected, jobs = {}, list[tuple[tuple[int, int], RunDirectory]]()
    for kind, count in KINDS.items():
        options = [f"--set=train.seed={kind[0]}", f"--procs={kind[1]}"]
        fit(*RECIPE, *options, f"--run=alone-{kind[0]}", cwd=queue.folder)
        expected[kind] = status(queue.folder / f"alone-{kind[0]}")["state_digest"]
        for number in range(0, count, 10):
            tasks = [f"--array=log.every_steps={steps}" for steps in range(1, 11)]
            place = ["--queue=local", "--json", f"--priority={number % 3}"]
            done = distrain("submit", *RECIPE, *options, *place, *tasks, cwd=queue.folder, env=queue.env)
            assert done.code == 0, done.err
            jobs += [(kind, RunDirectory(queue.root / row["run"])) for row in json.loads(done.out)]
    assert len(jobs) == 200
    runs = [run for _, run in jobs]
    serve = queue.serve("--slots=2")
    kills = {"job": 0, "serve": 0, "both": 0}
    while not is_over(*runs):
        time.sleep(draw.uniform(0.2, 2.0))
        busy = [run for run in runs if run.is_held]
        _check_slots(busy)
        if draw.random() > KILL_SHARE:
            continue
        kind_of_kill = draw.choice(list(kills))
        if kind_of_kill != "serve" and busy:
            _kill(draw.choice(busy))
        if kind_of_kill != "job":
            serve.kill()
            serve.wait()
            serve = queue.serve("--slots=2")
        kills[kind_of_kill] += 1
    assert not [(run.path.name, state(run)) for run in runs if state(run) != "finished"], queue.log
    assert min(kills.values()) > 0
    for kind, run in jobs:
        assert run.read_status().state_digest == expected[kind], run.path
        steps = [record["step"] for record in run.read_metrics() if "train/loss" in record]
        assert steps == sorted(set(steps)), f"{run.path}: a step was recorded twice"
    attempts = [len(run.read_status().attempts) for run in runs]
    print(f"kills {kills}, attempts of the jobs: {sum(attempts)}, at most {max(attempts)} of one")


def _check_slots(busy: list[RunDirectory]) -> None:
    """Fail where two runs that train have the same slot."""
    slots = {run.path.name: set(job.assigned) for run in busy if (job := run.read_local_job()) and run.is_held}
    for (one, first), (other, second) in combinations(slots.items(), 2):
        assert not first & second, f"{one} and {other} share {first & second}"


def _kill(run: RunDirectory) -> None:
    """Kill rank 0 of a run, which for one process is its launcher."""
    attempts = run.read_status().attempts
    if attempts and attempts[-1].ended is None:
        with suppress(ProcessLookupError):
            os.kill(attempts[-1].pid, signal.SIGKILL)
