"""Saves NCCL's flight recorder, the latest collective calls of each rank, when the launcher ends a stalled attempt.

A rank dumps it in the heartbeat's thread, while its main thread waits for the device. The dumps are pickles for
`torchfrtrace DIR`, which finds the call that some ranks made and others did not.
"""

import os
import time
from collections.abc import MutableMapping
from contextlib import suppress

from distrain.runs.directory import RunDirectory

ANSWER_TIMEOUT_S = 5.0  # how long ranks have to answer a request
_BUFFER_SIZE = 2000  # collective calls that a rank records
_POLL_S = 0.05


class FlightRecorder:
    """Answers requests for the flight recorder of this rank."""

    def __init__(self, run: RunDirectory, rank: int, *, environment: MutableMapping[str, str] = os.environ) -> None:
        """Set the variables in `environment` that NCCL's process groups read at creation, unless the user has set them.

        torch's own dump, after a collective call has timed out, goes to the same file.
        """
        self._run = run
        self._rank = rank
        self._answered_ns = 0
        with suppress(OSError):  # a full disk, which is reported elsewhere: training does not need this folder
            run.flight_records.mkdir(exist_ok=True)
        if "TORCH_NCCL_TRACE_BUFFER_SIZE" not in environment:  # its older name
            environment.setdefault("TORCH_FR_BUFFER_SIZE", str(_BUFFER_SIZE))
        environment.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
        if "TORCH_NCCL_DEBUG_INFO_TEMP_FILE" not in environment:
            environment.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(run.flight_record(rank)).removesuffix(str(rank)))

    def look(self, _step: int) -> None:
        """Write a dump if one was requested since the last call; to be called about once a second."""
        try:
            requested_ns = self._run.flight_request.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if requested_ns == self._answered_ns:
            return
        self._answered_ns = requested_ns
        import torch._C._distributed_c10d as c10d

        path = self._run.flight_record(self._rank)
        draft = path.with_name(f".{path.name}")
        draft.write_bytes(c10d._dump_nccl_trace())  # type: ignore[attr-defined]  # exists in builds with NCCL
        draft.replace(path)


def collect(run: RunDirectory, ranks: list[int]) -> str:
    """Request the flight recorders of these ranks, wait up to `ANSWER_TIMEOUT_S`, and return a message."""
    before = {rank: _written_ns(run, rank) for rank in ranks}
    missing = ranks
    with suppress(OSError):
        run.flight_request.touch()
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while missing and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            missing = [rank for rank in missing if _written_ns(run, rank) == before[rank]]
        run.flight_request.unlink(missing_ok=True)
    if len(missing) == len(ranks):
        return "no rank answered the request for its flight recorder"
    without = f", without rank {', '.join(map(str, missing))}, which did not answer" if missing else ""
    return f"flight recorder: torchfrtrace {run.flight_records}{without}"


def _written_ns(run: RunDirectory, rank: int) -> int:
    try:
        return run.flight_record(rank).stat().st_mtime_ns
    except OSError:
        return 0
