"""NCCL's flight recorder is saved when the launcher requests it, whatever the main thread does."""

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

from distrain.runs.directory import RunDirectory
from distrain.runs.flight_recorder import FlightRecorder, collect

pytestmark = pytest.mark.skipif(not dist.is_nccl_available(), reason="this torch has no NCCL")


@contextmanager
def ranks_that_look(run: RunDirectory, ranks: list[int]) -> Iterator[None]:
    """Threads that poll for a request, as the heartbeat's thread of each rank does."""
    over = threading.Event()

    def look(rank: int) -> None:
        recorder = FlightRecorder(run, rank, environment={})
        while not over.wait(0.05):
            recorder.look(0)

    threads = [threading.Thread(target=look, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


def test_dumps_of_all_ranks_are_collected_by_the_names_that_torchfrtrace_reads(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with ranks_that_look(run, [0, 1]):
        assert collect(run, [0, 1]) == f"flight recorder: torchfrtrace {tmp_path}/flight-recorder"
        first = run.flight_record(1).stat().st_mtime_ns
        collect(run, [0, 1])  # of the next attempt
    assert run.flight_record(1).stat().st_mtime_ns != first
    dump = pickle.loads((tmp_path / "flight-recorder" / "rank-1").read_bytes())
    assert {"version", "entries", "pg_config"} <= dump.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flight-recorder"]


def test_rank_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrain.runs.flight_recorder.ANSWER_TIMEOUT_S", 1.0)
    run = RunDirectory(tmp_path)
    with ranks_that_look(run, [0]):
        assert collect(run, [0, 1]).endswith("flight-recorder, without rank 1, which did not answer")
    assert collect(run, [0, 1]) == "no rank answered the request for its flight recorder"


def test_variables_of_the_user_are_kept(tmp_path: Path) -> None:
    chosen = {
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "9",
        "TORCH_FR_DUMP_TEMP_FILE": "/elsewhere",
    }
    environment = dict(chosen)
    FlightRecorder(RunDirectory(tmp_path), 12, environment=environment)
    assert environment == chosen
    environment = {}
    FlightRecorder(RunDirectory(tmp_path), 12, environment=environment)
    assert environment == {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/flight-recorder/rank-",
    }
