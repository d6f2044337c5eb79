"""The heartbeat's thread outlives every exception in it, and a request to stop is heard without it."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrain.launchers import supervisor
from distrain.launchers.multinode.group import SingleNode
from distrain.launchers.plan import Plan
from distrain.launchers.watchdog import StallWatchdog
from distrain.runs.directory import RunDirectory
from distrain.runs.stop_requests import fetch_signals, stop_on_signal
from distrain.system import process
from distrain.system.process import children, hold_signals
from distrain.system.signals import StopRequest
from distrain.training import heartbeat
from distrain.training.heartbeat import HeartbeatWriter
from distrain.training.loggers.background import Background
from distrain.training.monitor import RankMonitor
from distrain.training.train_state import TrainState
from tests.cli_runner import wait_until
from tests.forks import server


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


def broken_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Do what `function` does, from the second call on; the first one raises."""
    calls = []

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise AttributeError("'int' object has no attribute 'f_lineno'")
        return function(*arguments)

    return call


def test_attempt_that_ends_within_a_second_has_said_where_it_began(run: RunDirectory) -> None:
    with RankMonitor(run, rank=0) as monitor:
        wait_until(lambda: bool(run.read_heartbeats()), "a heartbeat of the start-up")
        assert not run.status.exists()
        monitor.state.begin_attempt(world_size=1, first_step=10)
        monitor.report_start()
        assert [heartbeat.step for heartbeat in run.read_heartbeats()] == [10]
        assert run.read_status().attempts[-1].first_step == 10


@pytest.mark.parametrize("duty", ["write_heartbeat", "write_status", "on_beat"])
def test_heartbeat_outlives_what_one_of_its_duties_raises(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, duty: str
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.001)
    seen: list[int] = []
    if duty.startswith("write"):
        monkeypatch.setattr(run, duty, broken_once(getattr(run, duty)))
    state = TrainState()
    writer = HeartbeatWriter(run, rank=0, state=state)
    writer.on_beat = broken_once(seen.append) if duty == "on_beat" else seen.append
    state.begin_attempt(world_size=1)
    with writer:
        for step in (3, 4):
            state.step = step
            wait_until(lambda s=step: s in seen and run.read_status().step == s, "a status")  # type: ignore[misc]
            wait_until(lambda s=step: s in [beat.step for beat in run.read_heartbeats()], "a heartbeat")  # type: ignore[misc]


def request_in_a_handler(folder: Path) -> None:
    """Request a stop over and over, while a handler does the same in between."""
    with stop_on_signal(RunDirectory(folder), kill=lambda: None) as stop:
        signal.signal(signal.SIGALRM, lambda *_: stop.set())
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        for _ in range(300_000):
            stop.set()
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_signal_while_a_stop_is_requested_does_not_wait_for_itself(tmp_path: Path) -> None:
    child = server().Process(target=request_in_a_handler, args=(tmp_path,))
    child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0, "it hangs"


def fetch_after_a_failure(folder: Path) -> None:
    hold_signals()
    signal.sigwaitinfo = broken_once(signal.sigwaitinfo)
    run, stop = RunDirectory(folder), StopRequest()
    fetch_signals(run, stop)
    os.kill(os.getpid(), signal.SIGTERM)
    wait_until(stop.is_set, "the request")
    wait_until(run.stop.exists, "the stop file")


def test_thread_that_waits_for_signals_outlives_an_exception(tmp_path: Path) -> None:
    child = server().Process(target=fetch_after_a_failure, args=(tmp_path,))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_launcher_outlives_heartbeats_that_it_cannot_read(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "read_heartbeats", broken_once(run.read_heartbeats))
    told: list[str] = []
    child = subprocess.Popen(["sleep", "2.5"])
    stalls = StallWatchdog(run, timeout_s=60)
    assert not supervisor._watch(child, [stalls.check], SingleNode(Plan(("sleep",), cwd=Path.cwd())), told.append)
    assert child.returncode == 0
    assert len(told) == 1
    assert told[0].startswith("the launcher's check of the ranks failed once (AttributeError: ")


class Flaky:
    """A sink that fails to write its second record."""

    def __init__(self) -> None:
        self.records: list[float] = []
        self.is_closed = False

    def write(self, record: dict[str, float]) -> None:
        if record["step"] == 2:
            raise ConnectionError("lost for a moment")
        self.records.append(record["step"])

    def close(self) -> None:
        self.is_closed = True


def test_sink_that_fails_once_gets_the_next_record() -> None:
    flaky = Flaky()
    background = Background("flaky", lambda _: flaky, None)  # type: ignore[arg-type]  # the sink needs no opening
    for step in range(1, 5):
        background.write({"step": step})
    background.close()
    assert flaky.records == [1, 3, 4]
    assert flaky.is_closed


def test_children_are_listed_while_threads_come_and_go() -> None:
    is_over = threading.Event()

    def churn() -> None:
        while not is_over.is_set():
            threading.Thread(target=lambda: None).start()

    churning = threading.Thread(target=churn)
    child = subprocess.Popen(["sleep", "60"])
    churning.start()
    try:
        for _ in range(300):
            assert child.pid in children()
    finally:
        is_over.set()
        churning.join()
        child.kill()
        child.wait()


def test_signal_that_a_process_has_no_handler_for_is_not_taken_for_one_that_it_has() -> None:
    earlier = signal.signal(signal.SIGUSR2, lambda *_: None)
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert process.catches(os.getpid(), signal.SIGUSR2)
        assert not process.catches(child.pid, signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, earlier)
        child.kill()
        child.wait()
    assert not process.catches(child.pid, signal.SIGUSR2)
