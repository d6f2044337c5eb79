"""The queue of this machine with real processes: `distrain serve` and the jobs that it runs."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from distrain.runs.directory import RunDirectory
from tests.cli_runner import QUIET, Done, command, distrain, fit, status
from tests.users import NOBODY, public_folder, under_nobody

SMALL = ["digits", "--device=cpu", *QUIET, "--set=train.epochs=2", "--set=checkpoint.every_steps=5"]
# Each step takes about 20 ms more, so that there is time to stop it.
SLOW = ["--set=data.batch_size=32", "--set=train.epochs=6"]


class Queue:
    """A folder of runs, with a lock folder of its own, and the `serve` that runs its jobs."""

    def __init__(self, folder: Path, *, locks: Path | None = None, under: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.root = folder / "runs"
        self.env = {"DISTRAIN_LOCK_DIR": str(locks or folder / "locks"), "HOME": str(folder)}
        self.under = under  # words before a command that run it as another user
        self.served: list[subprocess.Popen[str]] = []

    def call(self, *arguments: str) -> Done:
        if not self.under:
            return distrain(*arguments, cwd=self.folder, env=self.env)
        words, env = [*self.under, *command(*arguments)], {**os.environ, **self.env}
        done = subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    def submit(self, *arguments: str) -> RunDirectory:
        done = self.call("submit", *SMALL, "--queue=local", "--json", *arguments)
        assert done.code == 0, done.err
        return RunDirectory(self.root / json.loads(done.out)["run"])

    def serve(self, *arguments: str) -> subprocess.Popen[str]:
        with (self.folder / "serve.log").open("a") as log:
            process = subprocess.Popen(
                [*self.under, *command("serve", *arguments)],
                cwd=self.folder,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.served.append(process)
        return process

    @property
    def log(self) -> str:
        return (self.folder / "serve.log").read_text()

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(distrain("queue", "--json", cwd=self.folder, env=self.env).out)
        return found

    def end(self) -> None:
        for process in self.served:
            process.kill()
            process.wait()
        for process in psutil.process_iter(["cmdline"]):
            if str(self.root) in " ".join(process.info["cmdline"] or []):
                process.kill()


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    found = Queue(tmp_path)
    yield found
    found.end()


def wait_until(condition: Callable[[], bool], queue: Queue, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, queue.log
        time.sleep(0.1)


def state(run: RunDirectory) -> str:
    return run.read_status().state


def is_at(run: RunDirectory, step: int) -> bool:
    return run.read_status().step >= step


def is_over(*runs: RunDirectory) -> bool:
    return all(state(run) in {"finished", "failed"} and not run.is_held for run in runs)


@pytest.mark.slow
def test_twelve_jobs_run_in_order_two_at_a_time(queue: Queue) -> None:
    runs = [queue.submit(f"--priority={number % 2}") for number in range(12)]
    assert [run.read_status().state for run in runs] == ["queued"] * 12
    assert [row["run"] for row in queue.rows()] == [run.path.name for run in runs[1::2] + runs[::2]]
    queue.serve("--slots=2")
    wait_until(lambda: is_over(*runs), queue, timeout_s=240)
    assert [state(run) for run in runs] == ["finished"] * 12, queue.log
    assert len({run.read_status().weights_digest for run in runs}) == 1
    began = sorted(runs, key=lambda run: run.read_status().attempts[0].started)
    assert {run.path for run in began[:6]} == {run.path for run in runs[1::2]}, "the higher priority came first"
    attempts = [attempt for run in runs for attempt in run.read_status().attempts]
    assert len(attempts) == 12
    for attempt in attempts:
        assert len([other for other in attempts if other.started <= attempt.started < (other.ended or 0)]) <= 2
    assert queue.rows() == []


@pytest.mark.slow
def test_preempted_job_resumes_to_the_same_weights(queue: Queue) -> None:
    low = queue.submit(*SLOW, "--procs=1")
    queue.serve("--slots=1")
    wait_until(lambda: is_at(low, 20), queue)
    high = queue.submit("--priority=1")
    wait_until(lambda: is_over(low, high), queue)
    assert [state(low), state(high)] == ["finished", "finished"], queue.log
    attempts = low.read_status().attempts
    assert [attempt.state for attempt in attempts] == ["preempted", "finished"]
    high_began = high.read_status().attempts[0].started
    assert attempts[0].ended is not None and attempts[0].ended <= high_began <= attempts[1].started
    assert attempts[0].last_step == attempts[1].first_step > 0, "no step was repeated"
    job = low.read_local_job()
    assert job is not None and job.preemptions == 1
    fit(*SMALL, *SLOW, "--run=alone", cwd=queue.folder)
    alone = status(queue.folder / "alone")
    assert (low.read_status().weights_digest, low.read_status().state_digest) == (
        alone["weights_digest"],
        alone["state_digest"],
    )
    assert (
        "preempted   once; the result is the same as without"
        in distrain("runs", "show", str(low.path), cwd=queue.folder).out
    )


def test_killed_serve_is_replaced_by_one_that_adopts_what_runs(queue: Queue) -> None:
    first, second = queue.submit(*SLOW), queue.submit()
    serve = queue.serve("--slots=1")
    wait_until(lambda: is_at(first, 10), queue)
    serve.kill()
    serve.wait()
    queue.serve("--slots=1")
    wait_until(lambda: is_over(first, second), queue)
    assert [state(first), state(second)] == ["finished", "finished"], queue.log
    assert [len(run.read_status().attempts) for run in (first, second)] == [1, 1]


@pytest.mark.slow
def test_killed_job_is_resumed_by_itself(queue: Queue) -> None:
    run = queue.submit(*SLOW)
    queue.serve("--slots=1")
    wait_until(lambda: any(run.checkpoints.glob("step-*[0-9]")), queue)
    os.kill(run.read_status().attempts[0].pid, signal.SIGKILL)
    wait_until(lambda: is_over(run), queue)
    attempts = run.read_status().attempts
    assert [attempt.state for attempt in attempts] == ["failed", "finished"], queue.log
    assert attempts[1].first_step > 0
    assert "died, and is queued again" in queue.log


@pytest.mark.slow
def test_cancelled_and_stopped_jobs_stay_so_until_they_are_resumed(queue: Queue) -> None:
    running, waiting, stopped = queue.submit(*SLOW), queue.submit(), queue.submit()
    queue.serve("--slots=1")
    wait_until(lambda: is_at(running, 5), queue)
    assert "cancelled" in distrain("cancel", waiting.path.name, cwd=queue.folder).out
    assert "out of the queue" in distrain("stop", stopped.path.name, cwd=queue.folder).out
    assert distrain("cancel", running.path.name, cwd=queue.folder).code == 0
    wait_until(lambda: state(running) == "cancelled" and not running.is_held, queue)
    time.sleep(2.5)
    assert [state(run) for run in (running, waiting, stopped)] == ["cancelled", "cancelled", "stopped"]
    step = running.read_status().step
    assert distrain("resume", running.path.name, cwd=queue.folder, env=queue.env).code == 0
    wait_until(lambda: is_over(running), queue)
    assert state(running) == "finished"
    assert running.read_status().attempts[1].first_step == step > 0


@pytest.mark.slow
def test_job_that_refuses_its_input_fails_with_the_sentence(queue: Queue, tmp_path: Path) -> None:
    data = tmp_path / "photos"
    run = queue.submit()
    broken = queue.submit()
    (broken.path / "recipe.yaml").write_text((broken.path / "recipe.yaml").read_text().replace("digits", f"{data}", 1))
    queue.serve("--slots=1")
    wait_until(lambda: is_over(run, broken), queue)
    assert state(run) == "finished"
    assert state(broken) == "failed"
    job = broken.read_local_job()
    assert job is not None and job.fault, queue.log
    wait_until(lambda: job.fault in queue.log, queue)


@pytest.mark.slow
def test_job_waits_for_another_and_not_for_one_that_failed(queue: Queue) -> None:
    first = queue.submit()
    second = queue.submit(f"--after={first.path.name}", "--priority=9")
    queue.serve("--slots=2")
    wait_until(lambda: is_over(first, second), queue)
    assert second.read_status().attempts[0].started >= (first.read_status().attempts[0].ended or 0)


@pytest.mark.slow
def test_time_limit_lets_others_run_and_then_resumes(queue: Queue) -> None:
    long = queue.submit(*SLOW, "--set=train.epochs=25", "--time=0:0:12")
    queue.serve("--slots=1")
    wait_until(lambda: is_at(long, 5), queue)
    other = queue.submit()
    wait_until(lambda: is_over(long, other), queue)
    assert state(long) == "finished"
    attempts = long.read_status().attempts
    assert len(attempts) > 1 and {attempt.state for attempt in attempts[:-1]} == {"preempted"}
    assert other.read_status().attempts[0].started < attempts[1].started


@pytest.mark.slow
def test_serve_that_ends_lets_jobs_continue(queue: Queue) -> None:
    run = queue.submit(*SLOW)
    serve = queue.serve("--slots=1")
    wait_until(lambda: is_at(run, 5), queue)
    serve.send_signal(signal.SIGTERM)
    assert serve.wait(30) == 0
    wait_until(lambda: state(run) == "finished", queue)
    assert "runs that have begun continue" in queue.log


def test_second_serve_is_refused(queue: Queue) -> None:
    queue.serve()
    wait_until(lambda: (queue.root / ".serve-lock").exists() and bool(queue.log), queue)
    time.sleep(0.5)
    done = distrain("serve", cwd=queue.folder, env=queue.env)
    assert done.code == 2
    assert "already" in done.err


@pytest.mark.slow
def test_two_users_with_a_queue_each_share_the_slot(tmp_path: Path) -> None:
    under = tuple(under_nobody())
    with public_folder() as place:
        for name, mode in (("locks", 0o1777), ("mine", 0o755), ("theirs", 0o755)):
            (place / name).mkdir()
            (place / name).chmod(mode)
        os.chown(place / "theirs", NOBODY, NOBODY)
        mine = Queue(place / "mine", locks=place / "locks")
        theirs = Queue(place / "theirs", locks=place / "locks", under=under)
        try:
            first = mine.submit()
            for words in (["cancel"], ["stop"], ["priority", "9"]):
                done = theirs.call(words[0], str(first.path), *words[1:])
                assert done.code == 2 and done.err.count("distrain: ") == 1, done.err
            runs = [first, *(queue.submit() for queue in (theirs, mine, theirs))]
            for queue in (mine, theirs):
                queue.serve("--slots=1")
            wait_until(lambda: is_over(*runs), mine)
            assert [state(run) for run in runs] == ["finished"] * 4, mine.log + theirs.log
            assert {run.status.stat().st_uid for run in runs} == {os.geteuid(), NOBODY}
            times = sorted((one.started, one.ended or 0.0) for run in runs for one in run.read_status().attempts)
            assert all(end <= begin for (_, end), (begin, _) in pairwise(times)), times
        finally:
            mine.end()
            theirs.end()


HANGING = """
import os, time
from pathlib import Path
from distrain.models.nets import DigitsCnn

class Net(DigitsCnn):
    def forward(self, images):
        marker = Path(os.environ["HOME"], "hung")
        self.calls = getattr(self, "calls", 0) + self.training
        if self.calls > 12 and not marker.exists():
            marker.touch()
            time.sleep(600)
        return super().forward(images)

def net(num_classes):
    return Net(num_classes, 1)
"""


@pytest.mark.slow
def test_job_of_one_process_that_stalls_is_killed_and_resumed(queue: Queue) -> None:
    (queue.folder / "mine.py").write_text(HANGING)
    run = queue.submit("--set=model.name=mine:net", "--stall-timeout=6", "--procs=1")
    queue.serve("--slots=1")
    wait_until(lambda: is_over(run), queue)
    assert state(run) == "finished", queue.log
    first, second = run.read_status().attempts
    assert first.state == "failed" and second.first_step > 0
    assert "is killed, to be resumed: rank 0" in queue.log and "no progress for" in queue.log


@pytest.mark.slow
def test_code_that_runs_is_the_code_that_was_submitted(queue: Queue) -> None:
    network = (
        "from distrain.models.nets import DigitsCnn\nprint('version {}')\n"
        "def net(num_classes):\n    return DigitsCnn(num_classes, 1)\n"
    )
    (queue.folder / "mine.py").write_text(network.format(1))
    runs = [queue.submit("--set=model.name=mine:net", f"--procs={count}") for count in (1, 2)]
    (queue.folder / "mine.py").write_text(network.format(2))
    queue.serve("--slots=2")
    wait_until(lambda: is_over(*runs), queue)
    for run in runs:
        assert state(run) == "finished", queue.log
        said = "".join(path.read_text() for path in run.logs.iterdir())
        assert "version 1" in said and "version 2" not in said


def test_run_in_the_background_outlives_its_command(queue: Queue) -> None:
    done = distrain("fit", *SMALL, "--run=runs/detached", "--detach", cwd=queue.folder, env=queue.env)
    assert done.code == 0, done.err
    run = RunDirectory(queue.root / "detached")
    wait_until(lambda: is_over(run), queue)
    assert state(run) == "finished"
    assert "finished" in run.console_log.read_text()


def test_fit_with_queue_submits(queue: Queue) -> None:
    done = distrain("fit", *SMALL, "--queue", cwd=queue.folder, env=queue.env)
    assert done.code == 0, done.err
    assert [row["state"] for row in queue.rows()] == ["queued"]
    assert "distrain serve" in done.out
