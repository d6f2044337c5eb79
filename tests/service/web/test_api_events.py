"""Events by REST: what changes reaches every client once, the slow, the late and those that come back included."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from distrain.runs.directory import RunDirectory
from distrain.service import queue
from distrain.service.web.app import create_app
from distrain.service.web.live import frames, live, tails
from distrain.service.web.live.frames import Frame, Subject
from distrain.service.web.live.rows import RunRows
from distrain.service.web.run_list import RunList
from distrain.service.web.site import Site
from tests.cli_runner import wait_until
from tests.service.web.sites import make_run, put, served

Event = tuple[str, str, Any]  # id, event, data


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(tmp_path / "locks"))
    return tmp_path / "runs"


@pytest.fixture
def app(root: Path) -> FastAPI:
    root.mkdir()
    return create_app(Site(root=root, slots=2))


@pytest.fixture
def address(app: FastAPI) -> Iterator[str]:
    with served(app) as address:
        yield address


@contextmanager
def following(address: str, **query: str) -> Iterator[Iterator[Event]]:
    """The events that a client reads."""
    with httpx.stream("GET", f"{address}/api/v1/events", params=query, timeout=30) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        yield _read(answer.iter_lines())


def _read(lines: Iterator[str]) -> Iterator[Event]:
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line and name:
            fields[name] = value
        elif "event" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}


def next_of(events: Iterator[Event], *kinds: str) -> Event:
    return next(event for event in events if event[1] in kinds)


def read_until(events: Iterator[Event], holds: Callable[[Any, Any], bool]) -> None:
    """Read until the newest events on the runs and on the queue are as they should be; either may come first."""
    newest: dict[str, Any] = {"runs": None, "queue": None}
    for _, kind, data in events:
        newest[kind] = data
        if holds(newest["runs"], newest["queue"]):
            return


def rows_of(data: Any, name: str) -> set[tuple[str, str]]:
    rows = data["changed"] if isinstance(data, dict) else data or []
    return {(row[name], row["state"]) for row in rows}


def set_step(run: RunDirectory, step: int) -> None:
    status = run.read_status()
    status.step = step
    run.write_status(status)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def watchers() -> int:
    return sum(thread.name == "distrain-live" for thread in threading.enumerate())


def test_changes_of_runs_queue_and_devices_arrive(root: Path, address: str) -> None:
    with following(address) as events:
        assert next(events)[1] == "ready"
        assert {next(events)[1], next(events)[1]} == {"queue", "devices"}
        run = put(root)
        name = run.path.name
        waits = {(name, "queued")}
        read_until(events, lambda runs, queued: rows_of(runs, "name") == waits == rows_of(queued, "run"))
        queue.cancel(run)
        read_until(events, lambda runs, queued: rows_of(runs, "name") == {(name, "cancelled")} and queued == [])
        run.remove()
        assert next_of(events, "runs")[2] == {"changed": [], "removed": [name]}


def test_followed_run_has_status_records_and_log_lines(root: Path, address: str) -> None:
    run = make_run(root, status='{"state": "stopped"}')
    append(run.log(0), "old\n")
    append(run.metrics, '{"step": 1}\n')
    with following(address, run="one") as events:
        assert next_of(events, "status")[2]["state"] == "stopped"
        append(run.log(0), "new\nhal")
        assert next_of(events, "log")[2] == {"run": "one", "log": "rank-0.log", "first": 4, "after": 8, "text": "new\n"}
        append(run.log(0), "f\n")
        assert next_of(events, "log")[2]["text"] == "half\n"
        append(run.metrics, '{"step": 2, "train/loss": NaN}\n{"st')
        assert next_of(events, "metrics")[2] == {"run": "one", "records": [{"step": 2, "train/loss": None}]}
        set_step(run, 5)
        assert next_of(events, "status")[2]["step"] == 5


def test_client_that_comes_back_gets_what_it_has_missed(root: Path, address: str) -> None:
    run = make_run(root, status='{"state": "stopped"}')
    with following(address, run="one") as events:
        last, _, _ = next_of(events, "status")
    wait_until(lambda: watchers() == 0, "the end of the look for changes")
    append(run.log(0), "meanwhile\n")
    set_step(run, 5)
    with following(address, run="one", after=last) as events:
        found = dict([next(events)[1:], next_of(events, "status")[1:], next_of(events, "log")[1:]])
        assert "reset" not in found and found["status"]["step"] == 5 and found["log"]["text"] == "meanwhile\n"
    for unknown in ("abcd-1", last[:-1] + "99", "x", "-", last.replace("-", "-0x")):
        with following(address, after=unknown) as events:
            assert next(events)[1] == "reset"


def test_nothing_is_looked_at_unless_a_client_is_connected(address: str) -> None:
    wait_until(lambda: watchers() == 0, "the end of the look for changes of other tests")
    with following(address) as first, following(address) as second:
        next(first), next(second)
        assert watchers() == 1
    wait_until(lambda: watchers() == 0, "the end of the look for changes")


def test_idle_stream_has_a_heartbeat(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.2)
    with httpx.stream("GET", f"{address}/api/v1/events", timeout=30) as answer:
        assert ": heartbeat" in answer.iter_lines()


def test_client_that_does_not_read_costs_little_and_is_told_to_reset(
    root: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads nothing while more is logged than is kept; another one reads everything."""
    monkeypatch.setattr(live, "_LOOK_S", 0.02)
    run = make_run(root, status='{"state": "stopped"}')
    with following(address, run="one") as slow, following(address, run="one") as quick:
        next_of(slow, "ready"), next_of(quick, "ready")
        written = read = 0
        while written < 16 * frames.MAX_BYTES:
            text = f"{'x' * 999}\n" * 100
            append(run.log(0), text)
            written += len(text)
            while read < written:
                read += len(next_of(quick, "log")[2]["text"])
        assert next_of(slow, "reset")[2] == {}
        append(run.log(0), "the end\n")
        assert any("the end" in event[2].get("text", "") for event in iter(lambda: next_of(slow, "log"), None))


def test_newest_state_replaces_those_before_and_old_changes_are_dropped() -> None:
    subject = Subject(0)
    for number in range(1, 6):
        subject.add(Frame(number, "queue", b"q"), is_state=True)
    assert subject.after(0) == [Frame(5, "queue", b"q")]
    for number in range(6, 10):
        subject.add(Frame(number, "log", bytes(frames.MAX_BYTES // 2)), is_state=False)
    assert subject.after(4) is None
    found = subject.after(8)
    assert found is not None and [frame.number for frame in found] == [9]


def test_file_that_grows_too_fast_or_begins_again_is_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    tail = tails.Tail(run, ("logs", "rank-0.log"))
    append(run.log(0), "a line\n" * tails.MAX_BYTES)
    first, lines, is_cut = tail.read_lines()
    assert (
        is_cut
        and lines.startswith(b"a line\n")
        and len(lines) <= tails.MAX_BYTES
        and tail.position == first + len(lines)
    )
    run.log(0).write_text("new\n")
    assert tail.read_lines() == (0, b"new\n", True)
    assert tail.read_lines() == (4, b"", False)


def test_rows_of_runs_that_have_ended_are_looked_at_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look at thousands of runs costs is a small part of the time; those that train are read each time."""
    for number in range(5):
        make_run(tmp_path, f"ended-{number}", '{"state": "finished"}')
    active = make_run(tmp_path, "active")
    status = active.read_status()
    status.begin_attempt(world_size=1, first_step=0)
    status.attempts[-1].host, status.heartbeat = "another", time.time()
    active.write_status(status)
    runs = RunList(tmp_path)
    reads: list[float] = []
    read = runs.read

    def slow_read() -> Any:
        reads.append(time.monotonic())
        time.sleep(0.05)
        return read()

    monkeypatch.setattr(runs, "read", slow_read)
    rows = RunRows(tmp_path, runs)
    rows.find_changes()
    for step in range(1, 20):
        set_step(active, step)
        changed, _ = rows.find_changes()
        assert [row["step"] for row in changed] == [step]
    assert len(reads) == 1
