"""Owns who this process is among all of them: the only module that reads rank variables or makes a process group."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from distrain.errors import LaunchError

_STOP_ASKED = "distrain/stop-asked"
_STOP_HEARD = "distrain/stop-heard"  # how many ranks look out
_STOP_STEP = "distrain/stop-step"
_LOOK_S = 0.1  # how long a request may go unheard
_ANSWER_S = 0.01
_LAST_ANSWER_S = 1.0  # a store that hangs by then is left to itself


@dataclass(frozen=True)
class World:
    """One training process among `size`; `device` is its own. `store` is what all of them see, if they are several."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    store: Store | None = None
    num_devices: int = 1  # more only where this one process has several GPUs

    @property
    def is_main(self) -> bool:
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

    def any_rank(self, flag: bool) -> bool:  # noqa: FBT001 - the one thing it takes
        """Return on every rank whether `flag` is set on at least one."""
        if self.size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor(int(flag))).item())

    def smallest(self, value: int) -> int:
        """Return on every rank the smallest of all ranks' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
        return int(found)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let rank 0 do the block before the others, for downloads and the like that are done once."""
        if not self.is_main:
            self.barrier()
        try:
            yield
        finally:  # where rank 0 fails, the others go on, and find out for themselves
            if self.is_main:
                self.barrier()


class StopAgreement:
    """Has all ranks stop before the same step; until somebody wants that, it costs a step nothing.

    Rank 0 decides. Once it is requested, its thread asks the other ranks to look out, and theirs say that they do. From
    then on each rank looks into the store at the beginning of every step. Rank 0 names the next step there before it
    contributes to the gradients of this one, and no rank gets past these without it: so each rank finds the word, at
    the latest, when it begins the step that it names. Steps that are `skipped` have no gradients: nothing holds the
    ranks together in them.
    """

    def __init__(
        self, world: World, is_requested: Callable[[], bool], *, skipped: frozenset[int] = frozenset()
    ) -> None:
        self._skipped = skipped
        self._world = world
        self._is_requested = is_requested
        self._stop_step: int | None = None
        self._is_alert = False  # on rank 0: all others are
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="distrain-stop", daemon=True)

    def __enter__(self) -> Self:
        if self._world.store is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._over.set()
            self._thread.join(_LAST_ANSWER_S)

    def is_reached(self, step: int) -> bool:
        """Return whether the ranks stop before they take `step`; each asks at the beginning of every step."""
        store = self._world.store
        if store is None:
            return self._is_requested()
        if not self._is_alert:
            return False
        if self._stop_step is None and self._world.is_main:
            while step in self._skipped:
                step += 1
            self._stop_step = step + 1
            store.set(_STOP_STEP, str(self._stop_step))
            store.get(_STOP_STEP)  # its answer comes after the store has taken the word: setting does not wait for it
        elif self._stop_step is None and store.check([_STOP_STEP]):
            self._stop_step = int(store.get(_STOP_STEP))
        return self._stop_step is not None and step >= self._stop_step

    def _watch(self) -> None:
        assert self._world.store is not None
        with suppress(RuntimeError):  # the store is gone with rank 0: the training finds out for itself
            if self._world.is_main:
                self._ask(self._world.store)
            else:
                self._listen(self._world.store)

    def _ask(self, store: Store) -> None:
        while not self._is_requested():
            if self._over.wait(_LOOK_S):
                return
        store.set(_STOP_ASKED, "")
        while store.add(_STOP_HEARD, 0) < self._world.size - 1:
            if self._over.wait(_ANSWER_S):
                return
        self._is_alert = True

    def _listen(self, store: Store) -> None:
        while not store.check([_STOP_ASKED]):
            if self._over.wait(_LOOK_S):
                return
        self._is_alert = True
        store.add(_STOP_HEARD, 1)  # rank 0 waits for it


def rank_from_environment() -> int:
    """Return this process's rank as its launcher has set it; 0 for a process that nobody launched."""
    return int(os.environ.get("RANK", "0"))


def size_from_environment() -> int:
    """Return how many training processes the launcher has started; 1 for a process that nobody launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join_world(*, device: str, processes: int, threads: int, num_devices: int = 1) -> Iterator[World]:
    """Join the other processes of this run, by the variables that the launcher has set, and leave them at the end.

    Raises `LaunchError` where another number of processes came than the profile asked for, and where a GPU is missing.
    """
    rank = rank_from_environment()
    size = size_from_environment()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if size != processes:
        raise LaunchError(f"{processes} processes were asked for and {size} came; start the run with `distrain fit`")
    torch.set_num_threads(threads)
    if device == "cuda":
        if (visible := torch.cuda.device_count()) < local_rank + num_devices:
            raise LaunchError(
                f"{socket.gethostname()} shows {visible} GPUs to rank {rank}, which needs {local_rank + num_devices}; "
                "`distrain doctor` there says more"
            )
        torch.cuda.set_device(local_rank)
    own_device = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    store: Store | None = None
    if size > 1:
        store, _, _ = next(rendezvous("env://"))
        # Checkpoints plan over gloo also where gradients travel over NCCL.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size)
    yield World(rank=rank, size=size, local_rank=local_rank, device=own_device, store=store, num_devices=num_devices)
    if size > 1:  # after an exception the other ranks may never come to this call: the launcher ends them
        dist.barrier()  # torchrun ends all ranks once one has left with the code for stopped: none may be at work then
        dist.destroy_process_group()
