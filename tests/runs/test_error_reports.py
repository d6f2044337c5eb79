"""Error reports of ranks are in the order of the events, whatever the clocks of their nodes say."""

import socket
from pathlib import Path

import pytest

from distrain.launchers.exit_reports import write_rank_error
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import Clocks, begin_attempt, read_errors
from distrain.runs.status import Heartbeat

HERE = socket.gethostname()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create()
    return made


def report(run: RunDirectory, rank: int, *, at: float, host: str = HERE, follows: bool = False) -> None:
    run.write_error({"time": at, "rank": rank, "host": host, "is_secondary": follows})


def beat(rank: int, *, host: str = HERE) -> Heartbeat:
    return Heartbeat(rank=rank, host=host, pid=1, time=0.0, step=3, phase="data", progress=0)


def ranks(run: RunDirectory) -> list[int]:
    return [error["rank"] for error in read_errors(run)]


def test_consequences_come_after_what_caused_them(run: RunDirectory) -> None:
    for rank, at, follows in ((0, 30.0, False), (1, 20.0, False), (3, 19.0, True)):
        report(run, rank, at=at, follows=follows)
    assert ranks(run) == [1, 0, 3]


def test_reports_of_an_earlier_attempt_are_ignored_whatever_their_times(run: RunDirectory) -> None:
    for rank in (0, 1, 2):
        report(run, rank, at=1000.0 + rank)
    begin_attempt(run)
    assert ranks(run) == []
    report(run, 1, at=900.0, host="late")  # its clock is behind, by more than a whole attempt
    assert ranks(run) == [1]
    begin_attempt(run)
    assert ranks(run) == []


def test_times_are_corrected_by_how_far_a_clock_is_off(run: RunDirectory) -> None:
    clocks = Clocks(now=lambda: 1000.0)
    for delay_s in (3.0, 0.5, 2.0):  # what it takes to see a heartbeat: the quickest tells most
        clocks.observe("behind", 1000.0 - 120.0 - delay_s)
        clocks.observe("ahead", 1000.0 + 120.0 - delay_s)
        clocks.observe("right", 1000.0 - delay_s)
    report(run, 0, at=990.0)
    report(run, 1, at=991.0 - 120.0, host="behind")
    report(run, 2, at=988.0 + 120.0, host="ahead")
    report(run, 3, at=989.0, host="right")
    assert ranks(run) == [1, 3, 0, 2]
    clocks.write(run)
    assert ranks(run) == [2, 3, 0, 1]


def test_clock_of_a_host_without_a_heartbeat_is_known_by_its_report(run: RunDirectory) -> None:
    report(run, 0, at=990.0)
    report(run, 1, at=999.0 - 120.0, host="behind")
    Clocks(now=lambda: 1000.0).write(run)
    assert ranks(run) == [0, 1]


def test_time_that_the_launcher_gives_for_a_rank_elsewhere_is_its_own(run: RunDirectory) -> None:
    clocks = Clocks()
    clocks.observe("behind", 0.0)
    write_rank_error(run, beat(1, host="behind"), kind="Stalled", message="it stands", stack=None, time_s=None)
    report(run, 0, at=read_errors(run)[0]["time"] + 1)
    clocks.write(run)
    assert ranks(run) == [1, 0]
