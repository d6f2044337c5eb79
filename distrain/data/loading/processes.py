"""Reads batches in processes, some batches ahead of the consumer.

The processes take turns, each reading whole batches. A batch is written into shared memory that is reused: only a short
message passes through a pipe, and no byte of the batch is copied or mapped again. The memory is anonymous (memfd), not
in /dev/shm, so that no mount limits it and none of it outlives the processes.
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

from distrain.data.loading.isolation import describe_exit, follow_parent, make_picklable
from distrain.data.loading.sampler import MicroBatch
from distrain.data.sources.base import Allocator, Batch
from distrain.errors import DataError
from distrain.system.exits import as_exception

BATCHES_AHEAD = 2  # of each process: one being read, one waiting to be read
SPARE_SLOTS = 3  # for batches that the consumer still uses: trained on, and copied to a GPU
_LAST_BATCH_S = 5.0  # a process that takes longer to finish its last batch is killed

_NO_SAMPLE = -1

Note = Callable[[int], None]  # receives the index of each sample before it is read
ReadBatch = Callable[[MicroBatch, Allocator, Note], "Batch | DataError"]  # images from `Allocator` are not copied


def read_in_processes(
    read: ReadBatch, micro_batches: Iterable[MicroBatch], *, num_processes: int, describe: Callable[[int], str]
) -> Generator["Batch | DataError", None, None]:
    """Yield the result of `read` for each micro-batch, in their order; raises what it raises.

    The processes are forks of this one, each with a single thread. Close the generator to end them. Raises
    `RuntimeError` where a process has died; `describe` maps the index of the sample that it was reading to a name.
    """
    workers = _Workers(read, num_processes, describe)
    atexit.register(workers.end)
    ahead: deque[int] = deque()  # the process that reads each of the next batches
    upcoming, turns = iter(micro_batches), itertools.cycle(range(num_processes))
    try:
        while True:
            while len(ahead) < BATCHES_AHEAD * num_processes:
                micro_batch = next(upcoming, None)
                if micro_batch is None:
                    break
                ahead.append(next(turns))
                workers.request(ahead[-1], micro_batch)
            if not ahead:
                return
            yield workers.receive(ahead.popleft())
    finally:
        atexit.unregister(workers.end)
        workers.end()


class _Memory:
    """Memory that grows on demand, shared by this process and those forked after it was created."""

    def __init__(self) -> None:
        self._file = os.memfd_create("distrain-batch")
        self._mapped: NDArray[np.uint8] = np.empty(0, np.uint8)

    def first(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return the first `num_bytes` bytes; the array and its views keep the memory alive."""
        if num_bytes > len(self._mapped):
            if num_bytes > os.fstat(self._file).st_size:
                os.ftruncate(self._file, num_bytes)
            self._mapped = np.frombuffer(mmap.mmap(self._file, num_bytes), np.uint8)
        return self._mapped[:num_bytes]

    def empty(self, shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised tensor at the start of the memory."""
        return torch.from_numpy(self.first(math.prod(shape) * dtype.itemsize)).view(dtype).view(shape)

    def put(self, tensor: torch.Tensor) -> "_TensorLayout":
        """Copy a tensor to the start of the memory, unless it is there already, and return its layout."""
        if tensor.data_ptr() != self._mapped.ctypes.data:
            tensor = self.empty(tuple(tensor.shape), dtype=tensor.dtype).copy_(tensor)
        return _TensorLayout(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def close(self) -> None:
        """Release the memory, except what is still in use."""
        os.close(self._file)
        self._mapped = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class _TensorLayout:
    """The layout of a tensor without gaps at the start of a memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def view(self, memory: _Memory, *, on_free: Callable[[], None] | None = None) -> torch.Tensor:
        """Return the tensor; `on_free` is called when it, and all tensors that share its memory, are deleted."""
        content = memory.first(math.prod(self.shape) * self.dtype.itemsize)
        if on_free is not None:
            weakref.finalize(content, on_free).atexit = False
        return torch.from_numpy(content).view(self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True, slots=True)
class _Response:
    """A batch that was read into a slot."""

    slot: int
    images: _TensorLayout
    targets: _TensorLayout


class _BatchSlot:
    """Memory for one batch."""

    def __init__(self) -> None:
        self.images = _Memory()
        self.targets = _Memory()

    def close(self) -> None:
        """Release the memory, except what is still in use."""
        self.images.close()
        self.targets.close()


class _Workers:
    """The processes, each started at its first request, and the slots that they read batches into."""

    def __init__(self, read: ReadBatch, num_processes: int, describe: Callable[[int], str]) -> None:
        self._read = read
        self._describe = describe
        self._samples = np.frombuffer(mmap.mmap(-1, 8 * num_processes), np.int64)  # shared: the one that each reads
        self._samples[:] = _NO_SAMPLE
        self._slots = [_BatchSlot() for _ in range(BATCHES_AHEAD * num_processes + SPARE_SLOTS)]
        self._free = deque(range(len(self._slots)))
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []

    def request(self, number: int, micro_batch: MicroBatch) -> None:
        """Have a process read a micro-batch, after earlier requests."""
        if number == len(self._processes):
            self._start()
        try:
            self._pipes[number].send((self._free.popleft(), micro_batch))
        except OSError:
            raise self._worker_died(number) from None

    def receive(self, number: int) -> "Batch | DataError":
        """Wait for the oldest request to a process, and return its batch; raises the error of that process."""
        try:
            response = self._pipes[number].recv()
        except (EOFError, OSError):
            raise self._worker_died(number) from None
        if isinstance(response, _Response):
            return self._batch(response)
        slot, error = response
        self._free.append(slot)
        if isinstance(error, DataError):
            return error
        raise error

    def end(self) -> None:
        """End the processes, each after its current batch."""
        for pipe in self._pipes:
            pipe.close()  # the process sees it, since no other process holds this end
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
        parent_end, child_end = context.Pipe()
        self._pipes.append(parent_end)
        note = partial(self._samples.__setitem__, len(self._processes))
        arguments = (self._read, self._slots, child_end, tuple(self._pipes), note)
        process = context.Process(target=_work, args=arguments, name="distrain-loader", daemon=True)
        process.start()
        self._processes.append(process)
        child_end.close()  # so that reading from the pipe fails when the process ends

    def _batch(self, response: _Response) -> Batch:
        slot, number = self._slots[response.slot], response.slot
        images = response.images.view(slot.images, on_free=lambda: self._free.append(number))
        if not self._free:  # the consumer holds every slot, so that no further batch could be read
            images = images.clone()
        return images, response.targets.view(slot.targets).clone()

    def _worker_died(self, number: int) -> RuntimeError:
        process = self._processes[number]
        process.join(_LAST_BATCH_S)
        how = describe_exit(process.exitcode)
        if process.exitcode == -signal.SIGKILL:
            how += " (often out of memory: lower data.num_workers)"
        sample = int(self._samples[number])
        at = "" if sample == _NO_SAMPLE else f" while it read {self._describe(sample)}"
        return RuntimeError(f"loader process {process.pid} {how}{at}")


def _work(
    read: ReadBatch, slots: list[_BatchSlot], pipe: Connection, parent_ends: tuple[Connection, ...], note: Note
) -> None:
    """Answer requests until the other end of the pipe closes: the main function of a loader process."""
    for other in parent_ends:
        other.close()
    follow_parent()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the consumer has closed the pipe, or has died
        while True:
            number, micro_batch = pipe.recv()
            response = _respond(read, slots[number], number, micro_batch, note)
            note(_NO_SAMPLE)
            pipe.send(response)


def _respond(
    read: ReadBatch, slot: _BatchSlot, number: int, micro_batch: MicroBatch, note: Note
) -> _Response | tuple[int, Exception]:
    try:
        found = read(micro_batch, slot.images.empty, note)
        if isinstance(found, DataError):
            return number, found
        images, targets = found
        return _Response(number, slot.images.put(images), slot.targets.put(targets))
    except BaseException as error:  # noqa: BLE001 - an exit too: the consumer raises it
        return number, make_picklable(as_exception(error), where="a loader process")
