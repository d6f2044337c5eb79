"""A rank whose collective call broke is distinguished from the rank that caused it, by torch's exceptions."""

import datetime
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from distrain.runs.consequences import is_secondary
from tests.forks import server


def lose(rank: int, store: str, way: str) -> None:
    """Join another rank, lose it, and exit with code 0 if the resulting exception is recognised as a consequence."""
    timeout = datetime.timedelta(seconds=3)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    dist.all_reduce(torch.ones(1))
    if rank == 1:
        if way == "hangs":
            time.sleep(10)
        return
    try:
        for _ in range(1000):
            dist.all_reduce(torch.ones(1000))
    except RuntimeError as error:
        try:
            raise ValueError("in the user's own words") from error
        except ValueError as own:
            raise SystemExit(not (is_secondary(error) and is_secondary(own))) from None
    raise SystemExit(1)


@pytest.mark.parametrize("way", ["ends", "hangs"])
def test_lost_rank_causes_the_exception_of_gloo(tmp_path: Path, way: str) -> None:
    ranks = [server().Process(target=lose, args=(rank, str(tmp_path / "store"), way)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    ranks[0].join(60)
    ranks[1].kill()
    assert ranks[0].exitcode == 0


def test_lost_store_is_a_consequence() -> None:
    with pytest.raises(RuntimeError) as caught:
        TCPStore("127.0.0.1", 9, world_size=2, is_master=False, timeout=datetime.timedelta(seconds=1))
    assert is_secondary(caught.value)


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (dist.DistBackendError("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4)"), True),
        (dist.DistBackendError("NCCL error: unhandled cuda error; Cuda failure 'out of memory'"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),  # of a server that holds the data
        (RuntimeError("s3: Connection reset by peer"), False),
        (BrokenPipeError(32, "Broken pipe"), False),
        (ValueError("sample 7 is bad"), False),
    ],
)
def test_messages_of_nccl_and_of_the_users_connections_are_distinguished(error: Exception, follows: bool) -> None:
    assert is_secondary(error) == follows
