"""The launcher writes reports for ranks that could not, and distinguishes causes from consequences."""

import socket
from pathlib import Path

import pytest

from distrain.launchers.exit_reports import END_LINE, report_killed_ranks
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import read_errors
from distrain.runs.status import Heartbeat

HERE = socket.gethostname()


@pytest.mark.parametrize(("is_final", "first"), [(True, 0), (False, 1)])
def test_rank_without_a_report_comes_after_one_with_a_final_error(tmp_path: Path, is_final: bool, first: int) -> None:
    """On a full disk only rank 0 can write its report."""
    run = RunDirectory(tmp_path / "run")
    run.create()
    for rank in (0, 1):
        beat = Heartbeat(rank=rank, host=HERE, pid=100 + rank, time=5.0, step=3, phase="save", progress=0)
        run.write_heartbeat(beat)
    report = {"time": 9.0, "rank": 0, "host": HERE, "step": 3, "is_secondary": False, "is_final": is_final}
    run.write_error(report)
    run.launcher_log.write_text("\n".join(END_LINE.format(code=1, pid=100 + rank) for rank in (0, 1)))
    report_killed_ranks(run, log_start=0)
    assert [error["rank"] for error in read_errors(run)] == [first, 1 - first]
