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
    """The place of a process among `size`, and its `device`. If there are several processes, all share `store`."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    store: Store | None = None
    num_devices: int = 1  # more than one only for a single process with several GPUs
    timeout: timedelta = default_pg_timeout  # of collective calls; pass it to every new group

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the rank that writes the files of the run."""
        return self.rank == 0

    @property
    def gpus(self) -> range:
        """The indices of this process's GPUs, `device` first; empty on the CPU."""
        first = self.device.index or 0
        return range(first, first + self.num_devices) if self.device.type == "cuda" else range(0)

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.size > 1:
            dist.barrier()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any_over_ranks(self, flag: bool) -> bool:  # noqa: FBT001 - its only argument
        """Return on every rank whether `flag` is set on at least one."""
        if self.size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor(int(flag))).item())

    def min_over_ranks(self, value: int) -> int:
        """Return on every rank the smallest of all ranks' values."""
        if self.size == 1:
            return value
        smallest = torch.tensor(value)
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        return int(smallest)

    def gather(self, value: T) -> list[T]:
        """Return on every rank the values of all ranks, by rank; they must be picklable and on the CPU."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_rank_zero(self, value: T) -> T:
        """Return the value of rank 0 on every rank; it must be picklable and on the CPU."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Run the block on rank 0 before the other ranks, for work that is done once, such as a download."""
        if not self.is_rank_zero:
            self.barrier()
        try:
            yield
        finally:  # if rank 0 fails, the others continue, and fail themselves
            if self.is_rank_zero:
                self.barrier()


def rank_from_environment() -> int:
    """Return the rank that the launcher has set for this process; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def size_from_environment() -> int:
    """Return the number of training processes that the launcher has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join_world(
    *, device: str, processes: int, threads: int, num_devices: int = 1, timeout_s: float | None = None
) -> Iterator[World]:
    """Join the process group of this run, described by the launcher's environment variables; leave it at the end.

    Collective calls time out after `timeout_s` seconds, by default torch's timeout.
    Raises `LaunchError` if the number of processes is not the one of the profile, or if a GPU is missing.
    """
    rank = rank_from_environment()
    size = size_from_environment()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if size != processes:
        raise LaunchError(
            f"{counted(processes, 'process was', 'processes were')} requested and {size} started; start the run with "
            "`distrain fit`"
        )
    torch.set_num_threads(threads)
    if device == "cuda":
        if (visible := torch.cuda.device_count()) < local_rank + num_devices:
            build = "" if torch.version.cuda else ", a build for CPUs only,"
            raise LaunchError(
                f"torch {torch.__version__}{build} sees {counted(visible, 'GPU')} on {socket.gethostname()}, and "
                f"rank {rank} needs {local_rank + num_devices}; run `distrain doctor` there for details"
            )
        torch.cuda.set_device(local_rank)
    rank_device = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    timeout = default_pg_timeout if timeout_s is None else timedelta(seconds=timeout_s)
    store: Store | None = None
    if size > 1:
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        # Checkpoints use gloo even if gradients are reduced over NCCL.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        group_store = PrefixStore("group", store)
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=size, timeout=timeout)
    yield World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        device=rank_device,
        store=store,
        num_devices=num_devices,
        timeout=timeout,
    )
    if size > 1:  # not after an exception: the other ranks may never reach the barrier, and the launcher ends them
        dist.barrier()  # torchrun ends all ranks once one exits with the code for stopped: all must have finished
        dist.destroy_process_group()
