"""Processes that belong together know it, and wait for each other as long as the run allows."""

import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distrain.checkpoint.writer import Checkpointer
from distrain.config import load_recipe
from distrain.config.batching import solve_batching
from distrain.distributed.bucket_reduction import BucketReducer
from distrain.distributed.world import join_world
from distrain.launchers.watchdog import collective_timeout_s
from tests.forks import server


def _join(rank: int, port: int, folder: str, found: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    config = load_recipe("digits", overrides=[]).checkpoint
    with join_world(device="cpu", processes=2, threads=1, timeout_s=4321) as world:
        owners = [  # their groups go with them
            Checkpointer(Path(folder), config=config, world=world),
            BucketReducer(world, solve_batching(8, 2, 2, is_exact=True), num_buckets=2),
        ]
        groups = list(dist.distributed_c10d._world.pg_map)
        found.put([group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups])
        del owners


def test_every_process_group_waits_as_long_as_the_run_allows(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = server()
    found = context.SimpleQueue()
    ranks = [context.Process(target=_join, args=(rank, port, str(tmp_path), found)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    for _ in ranks:
        timeouts = found.get()
        assert len(timeouts) >= 3  # the training's, the checkpoints' and the exchange's
        assert set(timeouts) == {4321}


def test_collective_calls_outlast_every_stall_that_the_launcher_would_end() -> None:
    assert collective_timeout_s(120) > 120 * 30
    assert collective_timeout_s(1) > 1800
