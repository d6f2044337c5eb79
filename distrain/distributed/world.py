"""Gives a process its rank: the only module that reads rank variables or creates process groups."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from distrain.errors import LaunchError
from distrain.messages import counted

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One training process among `size`; `device` is its own. `store` is what all of them see, if they are several."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    store: Store | None = None
    num_devices: int = 1  # more only where this one process has several GPUs
    timeout: timedelta = default_pg_timeout  # of each collective call, in every group: a new one has torch's own

    @property
    def is_rank_zero(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @property
    def gpus(self) -> range:
        """The numbers of this process's GPUs, its own first; none on the CPU."""
        first = self.device.index or 0
        return range(first, first + self.num_devices) if self.device.type == "cuda" else range(0)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any_over_ranks(self, flag: bool) -> bool:  # noqa: FBT001 - the one thing it takes
        """Return on every rank whether `flag` is set on at least one."""
        if self.size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor(int(flag))).item())

    def min_over_ranks(self, value: int) -> int:
        """Return on every rank the smallest of all ranks' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
        return int(found)

    def gather(self, value: T) -> list[T]:
        """Return on every rank the values of all, by their ranks: what can be pickled, and lies on the CPU."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_rank_zero(self, value: T) -> T:
        """Return on every rank rank 0's value: what can be pickled, and lies on the CPU."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Let rank 0 do the block before the others, for what is done once, such as a download."""
        if not self.is_rank_zero:
            self.barrier()
        try:
            yield
        finally:  # where rank 0 fails, the others continue, and find out for themselves
            if self.is_rank_zero:
                self.barrier()


def rank_from_environment() -> int:
    """Return this process's rank as its launcher has set it; 0 for a process that nobody launched."""
    return int(os.environ.get("RANK", "0"))


def size_from_environment() -> int:
    """Return how many training processes the launcher has started; 1 for a process that nobody launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join_world(
    *, device: str, processes: int, threads: int, num_devices: int = 1, timeout_s: float | None = None
) -> Iterator[World]:
    """Join the other processes of this run, by the variables that the launcher has set, and leave them at the end.

    A collective call fails after `timeout_s` seconds, by default torch's own limit.
    Raises `LaunchError` where another number of processes came than the profile requests, and where a GPU is missing.
    """
    rank = rank_from_environment()
    size = size_from_environment()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if size != processes:
        raise LaunchError(
            f"{counted(processes, 'process was', 'processes were')} requested and {size} came; start the run with "
            "`distrain fit`"
        )
    torch.set_num_threads(threads)
    if device == "cuda":
        if (visible := torch.cuda.device_count()) < local_rank + num_devices:
            build = "" if torch.version.cuda else ", a build for the CPU alone,"
            raise LaunchError(
                f"torch {torch.__version__}{build} sees {counted(visible, 'GPU')} on {socket.gethostname()}, and "
                f"rank {rank} needs {local_rank + num_devices}; `distrain doctor` there says more"
            )
        torch.cuda.set_device(local_rank)
    own_device = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    timeout = default_pg_timeout if timeout_s is None else timedelta(seconds=timeout_s)
    store: Store | None = None
    if size > 1:
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        # Checkpoints plan over gloo also where gradients travel over NCCL.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        group_store = PrefixStore("group", store)
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=size, timeout=timeout)
    yield World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        device=own_device,
        store=store,
        num_devices=num_devices,
        timeout=timeout,
    )
    if size > 1:  # after an exception the other ranks may never come to this call: the launcher ends them
        dist.barrier()  # torchrun ends all ranks once one has left with the code for stopped: none may be at work then
        dist.destroy_process_group()
