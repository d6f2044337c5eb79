"""Runs a function on several gloo ranks: real processes, forked from a server that has imported torch once."""

import datetime
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distrain.distributed.world import World
from tests.forks import server

TIMEOUT_S = 120


def run_ranks(function: Callable[..., None], folder: Path, world_size: int, *arguments: object) -> None:
    """Call `function(world, *arguments)` on each rank; fails with the traceback of the first rank that failed."""
    if world_size == 1:
        function(World(rank=0, size=1, local_rank=0, device=torch.device("cpu")), *arguments)
        return
    context = server()
    failures = context.SimpleQueue()
    store = folder / "store"
    store.unlink(missing_ok=True)
    ranks = [
        context.Process(target=_run, args=(function, rank, world_size, str(store), failures, arguments))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in ranks] == [0] * world_size


def _run(
    function: Callable[..., None], rank: int, world_size: int, store: str, failures: Any, arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=TIMEOUT_S / 2)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timeout)
    try:
        function(World(rank=rank, size=world_size, local_rank=rank, device=torch.device("cpu")), *arguments)
    except BaseException:
        failures.put(f"rank {rank}:\n{traceback.format_exc()}")
        raise
    dist.destroy_process_group()
