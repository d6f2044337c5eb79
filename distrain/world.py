"""Owns who this process is among all of them: the only module that reads rank variables or makes a process group."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from distrain.errors import LaunchError


@dataclass(frozen=True)
class World:
    """One training process among `size`; `device` is its own."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any_rank(self, flag: bool) -> bool:  # noqa: FBT001 - the one thing it takes
        """Return on every rank whether `flag` is set on at least one."""
        if self.size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor(int(flag))).item())

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let rank 0 do the block before the others, for downloads and the like that are done once."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


def rank_from_environment() -> int:
    """Return this process's rank as its launcher has set it; 0 for a process that nobody launched."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def join_world(*, device: str, processes: int, threads: int) -> Iterator[World]:
    """Join the other processes of this run, by the variables that the launcher has set, and leave them at the end.

    Raises `LaunchError` where another number of processes came than the profile asked for.
    """
    rank = rank_from_environment()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if size != processes:
        raise LaunchError(f"{processes} processes were asked for and {size} came; start the run with `distrain fit`")
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    own_device = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if size > 1:
        # Checkpoints plan over gloo also where gradients travel over NCCL.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    yield World(rank=rank, size=size, local_rank=local_rank, device=own_device)
    if size > 1:  # after an exception the other ranks may never come to this call: the launcher ends them
        dist.destroy_process_group()
