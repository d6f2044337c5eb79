"""The stack of a rank is available on demand, even if it hangs in native code, and after a fatal error."""

import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from distrain.runs import stacks
from distrain.runs.directory import RunDirectory
from distrain.runs.stacks import (
    MAIN_THREAD,
    answer_requests,
    parse_dump,
    read_fatal_error,
    read_own_threads,
    request_stacks,
)
from distrain.runs.status import Heartbeat
from distrain.training.monitor import RankMonitor
from tests.cli_runner import wait_until
from tests.forks import server


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


def hang_with_the_gil(path: Path) -> None:
    run = RunDirectory(path)
    answer_requests(run, 0, owns_process=True)
    with RankMonitor(run, rank=0):
        wait_until((run.heartbeats / "rank-0.json").exists, "a heartbeat")
        ctypes.PyDLL(None).sleep(1000)  # no other thread of this process runs Python meanwhile


def divide_work(path: Path) -> None:
    run = RunDirectory(path)
    answer_requests(run, 0, owns_process=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def wait_for_event(path: Path) -> None:
    run = RunDirectory(path)
    answer_requests(run, 0, owns_process=True)
    other = threading.Thread(target=time.sleep, args=(1000,), name="the-sleeper", daemon=True)
    with RankMonitor(run, rank=0):
        other.start()
        threading.Event().wait()


def start(function: Callable[[Path], None], run: RunDirectory) -> tuple[BaseProcess, list[Heartbeat]]:
    child = server().Process(target=function, args=(run.path,))
    child.start()
    wait_until(lambda: bool(run.read_heartbeats()), "a heartbeat")
    return child, run.read_heartbeats()


def test_rank_that_hangs_in_native_code_with_the_gil_answers(run: RunDirectory) -> None:
    child, heartbeats = start(hang_with_the_gil, run)
    try:
        wait_until(lambda: "ctypes.PyDLL" in request_stacks(run, heartbeats)[0][MAIN_THREAD], "the stack of the call")
    finally:
        child.kill()
        child.join()
    assert not run.stacks_request.exists()


def test_all_threads_answer_by_name_and_a_stopped_process_only_when_it_is_woken(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, heartbeats = start(wait_for_event, run)
    assert child.pid is not None
    try:
        (threads,) = request_stacks(run, heartbeats, all_threads=True).values()
        assert "in wait_for_event" in threads[MAIN_THREAD]
        assert "threading.Event().wait()" in threads[MAIN_THREAD]
        assert {name.partition(" (")[0] for name in threads} >= {MAIN_THREAD, "distrain-heartbeat", "the-sleeper"}
        assert not run.stacks_request.exists()

        os.kill(child.pid, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(stacks, "ANSWER_TIMEOUT_S", 0.3)
            assert request_stacks(run, heartbeats) == {}
        assert "in wait_for_event" in request_stacks(run, heartbeats, wake=True)[0][MAIN_THREAD]
    finally:
        child.kill()
        child.join()


def test_process_without_a_handler_is_not_signalled(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "ANSWER_TIMEOUT_S", 0.2)
    child = server().Process(target=time.sleep, args=(1000,))
    child.start()
    assert child.pid is not None
    here = socket.gethostname()
    beat = Heartbeat(rank=0, host=here, pid=child.pid, time=0, step=0, phase="data", progress=0)
    try:
        assert request_stacks(run, [beat]) == {}
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_fatal_error_of_a_rank_leaves_its_stack(run: RunDirectory) -> None:
    assert read_fatal_error(run, 0) is None
    child = server().Process(target=divide_work, args=(run.path,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGSEGV
    told = read_fatal_error(run, 0)
    assert told is not None
    assert told.startswith("Segmentation fault\n")
    assert "in divide_work" in told.splitlines()[-2]


def test_frames_above_the_worker_are_removed() -> None:
    worker = Path(stacks.__file__).parents[1] / "worker.py"
    text = (
        "Current thread 0x00007f0000000001 (most recent call first):\n"
        f'  File "{worker.with_name("trainer.py")}", line 2 in train\n'
        f'  File "{worker}", line 1 in main\n'
        '  File "<frozen runpy>", line 88 in _run_code\n'
        "\n"
        "Thread 0x00007f0000000002 [pool] (most recent call first):\n"
        "  <no Python frame>\n"
    )
    (main, other) = parse_dump(text)
    assert main[0] == "0x00007f0000000001"
    assert main[1].splitlines()[0] == f'  File "{worker}", line 1, in main'
    assert "in train" in main[1] and "runpy" not in main[1]
    assert other == ("0x00007f0000000002", "")


def test_own_threads_are_read_with_their_names() -> None:
    found = read_own_threads()
    assert "test_own_threads_are_read_with_their_names" in found[MAIN_THREAD]
