"""A request to stop reaches a rank by the file, by a poll, and by a signal where no file can be written."""

import signal
from pathlib import Path

import pytest

from distrain.runs.directory import RunDirectory
from distrain.runs.stop_requests import stop_on_signal
from distrain.system.signals import StopRequest
from distrain.training import stop_listener
from distrain.training.stop_listener import StopListener
from tests.cli_runner import wait_until


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


def test_stop_file_is_found_by_the_thread(run: RunDirectory) -> None:
    with StopListener(run) as listener:
        assert not listener.is_requested
        run.stop.touch()
        wait_until(lambda: listener.is_requested, "the request")


def test_poll_finds_the_stop_file_at_once_and_no_deletion_takes_it_back(run: RunDirectory) -> None:
    listener = StopListener(run)  # its thread is not started
    assert not listener.poll_stop_request()
    run.stop.touch()
    assert not listener.is_requested
    assert listener.poll_stop_request()
    run.stop.unlink()
    assert listener.poll_stop_request()
    assert listener.is_requested


class LostMount(type(Path())):  # type: ignore[misc]  # the class of this system's paths
    """A stop file whose first look fails, as on a network file system that is away for a moment."""

    looks = 0

    def exists(self, **_: object) -> bool:
        LostMount.looks += 1
        if LostMount.looks == 1:
            raise OSError("Transport endpoint is not connected")
        return True


def test_listener_outlives_a_look_that_fails(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_listener, "POLL_S", 0.001)
    run.stop = LostMount(run.stop)
    with StopListener(run) as listener:
        wait_until(lambda: listener.is_requested, "the request")
    assert LostMount.looks >= 2


def test_signal_is_a_request_by_itself_where_no_stop_file_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = RunDirectory(tmp_path / "file")  # as on a disk that has become read-only: OSError, and not FileNotFoundError
    stop = StopRequest()
    with stop_on_signal(run, kill=lambda: pytest.fail("killed"), requested=stop):
        listener = StopListener(run, stop)
        assert not listener.is_requested
        signal.raise_signal(signal.SIGTERM)
        assert listener.is_requested
