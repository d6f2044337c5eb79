"""Reads batches in processes, some batches ahead of the consumer.

The processes take turns, each reading whole batches. A batch is written into memory that both sides have mapped and
that is reused: handing it over costs a few words on a pipe, and no byte of it is copied or mapped again. The memory
belongs to the processes, not to /dev/shm, so that no mount limits it and none of it outlives them.
"""

import atexit
import itertools
import math
import mmap
import multiprocessing
import os
import signal
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from numpy.typing import NDArray

from distrain.data.loading.isolation import ending, live_for_parent, portable
from distrain.data.loading.sampler import MicroBatch
from distrain.data.sources.base import Allocator, Batch
from distrain.errors import DataError
from distrain.system.exits import as_exception

BATCHES_AHEAD = 2  # of each process: one that is read, one that waits for it
SPARE_SLOTS = 3  # for batches that were handed over and are not used up: trained on, and copied to a GPU
_LAST_BATCH_S = 5.0  # a process that is longer at its last batch is killed

_NO_SAMPLE = -1

Note = Callable[[int], None]  # is told the index of each sample before it is read
ReadBatch = Callable[[MicroBatch, Allocator, Note], "Batch | DataError"]  # images are best made with `Allocator`


def read_in_processes(
    read: ReadBatch, micro_batches: Iterable[MicroBatch], *, num_processes: int, describe: Callable[[int], str]
) -> Generator["Batch | DataError", None, None]:
    """Yield what `read` gives for each micro-batch, in their order; raises what it raises.

    The processes are forks of this one, of a single thread each. Close it when no more are wanted: that ends them.
    Raises `RuntimeError` where one has died; `describe` names the sample that it was reading by its index.
    """
    workers = _Workers(read, num_processes, describe)
    atexit.register(workers.end)
    ahead: deque[int] = deque()  # which of them reads each of the batches to come
    upcoming, turns = iter(micro_batches), itertools.cycle(range(num_processes))
    try:
        while True:
            while len(ahead) < BATCHES_AHEAD * num_processes:
                micro_batch = next(upcoming, None)
                if micro_batch is None:
                    break
                ahead.append(next(turns))
                workers.ask(ahead[-1], micro_batch)
            if not ahead:
                return
            yield workers.take(ahead.popleft())
    finally:
        atexit.unregister(workers.end)
        workers.end()


class _Memory:
    """Memory that grows as it must, seen by this process and by those that it forks after making it."""

    def __init__(self) -> None:
        self._file = os.memfd_create("distrain-batch")
        self._mapped: NDArray[np.uint8] = np.empty(0, np.uint8)

    def first(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return its first bytes, this many; the array and its views keep the memory alive."""
        if num_bytes > len(self._mapped):
            if num_bytes > os.fstat(self._file).st_size:
                os.ftruncate(self._file, num_bytes)
            self._mapped = np.frombuffer(mmap.mmap(self._file, num_bytes), np.uint8)
        return self._mapped[:num_bytes]

    def empty(self, shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised tensor that lies at its start."""
        return torch.from_numpy(self.first(math.prod(shape) * dtype.itemsize)).view(dtype).view(shape)

    def put(self, tensor: torch.Tensor) -> "_TensorLayout":
        """See to it that a tensor lies at its start, and return how."""
        if tensor.data_ptr() != self._mapped.ctypes.data:
            tensor = self.empty(tuple(tensor.shape), dtype=tensor.dtype).copy_(tensor)
        return _TensorLayout(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def close(self) -> None:
        """Give it back, but for what still is in use."""
        os.close(self._file)
        self._mapped = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class _TensorLayout:
    """How a tensor lies in memory, from its start on and without gaps."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def of(self, memory: _Memory, *, when_free: Callable[[], None] | None = None) -> torch.Tensor:
        """Return the tensor; `when_free` is called when it, and all that shares its memory, is gone."""
        content = memory.first(math.prod(self.shape) * self.dtype.itemsize)
        if when_free is not None:
            weakref.finalize(content, when_free).atexit = False
        return torch.from_numpy(content).view(self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True, slots=True)
class _Response:
    """A batch that was read into a room."""

    slot: int
    images: _TensorLayout
    targets: _TensorLayout


class _BatchSlot:
    """The place of one batch."""

    def __init__(self) -> None:
        self.images = _Memory()
        self.targets = _Memory()

    def close(self) -> None:
        """Give it back, but for what still is in use."""
        self.images.close()
        self.targets.close()


class _Workers:
    """The processes, each of which is started when it is first asked, and the rooms that they read batches into."""

    def __init__(self, read: ReadBatch, num_processes: int, describe: Callable[[int], str]) -> None:
        self._read = read
        self._describe = describe
        self._samples = np.frombuffer(mmap.mmap(-1, 8 * num_processes), np.int64)  # that each reads; shared with them
        self._samples[:] = _NO_SAMPLE
        self._slots = [_BatchSlot() for _ in range(BATCHES_AHEAD * num_processes + SPARE_SLOTS)]
        self._free = deque(range(len(self._slots)))
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []

    def ask(self, number: int, micro_batch: MicroBatch) -> None:
        """Have a process read a micro-batch after what was requested of it before."""
        if number == len(self._processes):
            self._start()
        try:
            self._pipes[number].send((self._free.popleft(), micro_batch))
        except OSError:
            raise self._worker_died(number) from None

    def take(self, number: int) -> "Batch | DataError":
        """Wait for the oldest request to a process, and return its batch; raises what was raised there."""
        try:
            answer = self._pipes[number].recv()
        except (EOFError, OSError):
            raise self._worker_died(number) from None
        if isinstance(answer, _Response):
            return self._batch(answer)
        slot, error = answer
        self._free.append(slot)
        if isinstance(error, DataError):
            return error
        raise error

    def end(self) -> None:
        """End the processes, each after the batch at which it is."""
        for pipe in self._pipes:
            pipe.close()  # which they see, as no other process has this end of it
        deadline = time.monotonic() + _LAST_BATCH_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for slot in self._slots:
            slot.close()
        self._slots = []

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        self._pipes.append(ours)
        note = partial(self._samples.__setitem__, len(self._processes))
        arguments = (self._read, self._slots, theirs, tuple(self._pipes), note)
        process = context.Process(target=_work, args=arguments, name="distrain-loader", daemon=True)
        process.start()
        self._processes.append(process)
        theirs.close()  # so that the end of the process is the end of what comes from it

    def _batch(self, answer: _Response) -> Batch:
        slot, number = self._slots[answer.slot], answer.slot
        images = answer.images.of(slot.images, when_free=lambda: self._free.append(number))
        if not self._free:  # so many batches are held by who took them that none could be read after this one
            images = images.clone()
        return images, answer.targets.of(slot.targets).clone()

    def _worker_died(self, number: int) -> RuntimeError:
        process = self._processes[number]
        process.join(_LAST_BATCH_S)
        how = ending(process.exitcode)
        if process.exitcode == -signal.SIGKILL:
            how += " (often for want of memory: lower data.num_workers)"
        sample = int(self._samples[number])
        at = "" if sample == _NO_SAMPLE else f" while it read {self._describe(sample)}"
        return RuntimeError(f"loader process {process.pid} {how}{at}")


def _work(
    read: ReadBatch, slots: list[_BatchSlot], pipe: Connection, of_others: tuple[Connection, ...], note: Note
) -> None:
    """Answer requests until the other end closes: what a loader process does."""
    for other in of_others:
        other.close()
    live_for_parent()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # whom it reads for wants no more, or is gone
        while True:
            number, micro_batch = pipe.recv()
            answer = _respond(read, slots[number], number, micro_batch, note)
            note(_NO_SAMPLE)
            pipe.send(answer)


def _respond(
    read: ReadBatch, slot: _BatchSlot, number: int, micro_batch: MicroBatch, note: Note
) -> _Response | tuple[int, Exception]:
    try:
        found = read(micro_batch, slot.images.empty, note)
        if isinstance(found, DataError):
            return number, found
        images, targets = found
        return _Response(number, slot.images.put(images), slot.targets.put(targets))
    except BaseException as error:  # noqa: BLE001 - also an exit: it is raised where the batch is asked for
        return number, portable(as_exception(error), where="a loader process")
