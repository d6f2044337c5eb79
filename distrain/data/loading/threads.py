"""Reads batches in threads of this process, some batches ahead of the consumer.

The samples of a batch are spread over the threads, and each is written into its row of one tensor. Only thread-safe
sources are read like this: see `Source.is_thread_safe`.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from queue import SimpleQueue

import torch

from distrain.data.loading.sampler import MicroBatch
from distrain.data.sources.base import empty_batch
from distrain.system.exits import LOADER_THREADS
from distrain.tensors.devices import use_device

MIN_BATCHES_AHEAD = 2
SAMPLES_AHEAD = 4  # of each thread, where batches are so small that two of them have fewer samples

Sample = tuple[torch.Tensor, int | torch.Tensor]
# Reads a sample by its position in its batch; the image may be written to its row of the batch, given once allocated.
ReadSample = Callable[[int, torch.Tensor | None], Sample]
Gathered = tuple[torch.Tensor, list[int | torch.Tensor]]  # images [n, channels, height, width], targets


def read_in_threads(
    prepare: Callable[[MicroBatch], ReadSample],
    micro_batches: Iterable[MicroBatch],
    *,
    num_threads: int,
    device: torch.device,
) -> Generator[tuple[MicroBatch, Gathered | None], None, None]:
    """Yield each micro-batch, in their order, with its samples; None where a sample failed or differs from the others.

    The images are on the CPU, in page-locked memory where `device` is a GPU. The caller reads a failed micro-batch
    again, to find its first error. Close the generator to end the threads, each after its current sample.
    """
    tasks: SimpleQueue[tuple[PendingBatch, int] | None] = SimpleQueue()
    stopped = threading.Event()
    threads = _start(tasks, stopped, num_threads, device)
    ahead: deque[PendingBatch] = deque()
    upcoming = iter(micro_batches)
    try:
        while True:
            while len(ahead) < MIN_BATCHES_AHEAD or sum(map(len, ahead)) < SAMPLES_AHEAD * num_threads:
                micro_batch = next(upcoming, None)
                if micro_batch is None:
                    break
                ahead.append(PendingBatch(micro_batch, prepare(micro_batch), pin_memory=device.type == "cuda"))
                for position in range(len(micro_batch.indices)):
                    tasks.put((ahead[-1], position))
            if not ahead:
                return
            batch = ahead.popleft()
            yield batch.micro_batch, batch.wait()
    finally:
        stopped.set()
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            thread.join()


class PendingBatch:
    """A micro-batch that threads fill, sample by sample; the first image read determines shape and dtype of all."""

    def __init__(self, micro_batch: MicroBatch, read: ReadSample, *, pin_memory: bool) -> None:
        self.micro_batch = micro_batch
        self._read = read
        self._empty = partial(torch.empty, pin_memory=pin_memory)
        self._images: torch.Tensor | None = None
        self._outs: tuple[torch.Tensor, ...] | None = None
        self._targets: list[int | torch.Tensor] = [0] * len(self)
        self._num_left = len(self)
        self._is_bad = False
        self._lock = threading.Lock()
        self._is_done = threading.Event()

    def __len__(self) -> int:
        """Return the number of its samples."""
        return len(self.micro_batch.indices)

    def fill(self, position: int) -> None:
        """Read one sample into its row; never raises."""
        try:
            out = None if self._outs is None else self._outs[position]
            image, self._targets[position] = self._read(position, out)
            if out is None:
                out = self._allocate(image)[position]
            if image.shape != out.shape or image.dtype != out.dtype:
                self._is_bad = True
            elif image is not out:
                out.copy_(image)
        except BaseException:  # noqa: BLE001 - an exit too: the consumer reads the sample again and raises the error
            self._is_bad = True
        with self._lock:
            self._num_left -= 1
            if self._num_left == 0:
                self._is_done.set()

    def wait(self) -> Gathered | None:
        """Wait until all samples are read, and return them; None where they do not make a batch."""
        self._is_done.wait()
        return None if self._is_bad or self._images is None else (self._images, self._targets)

    def _allocate(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self._lock:
            if self._outs is None:
                self._images = empty_batch(image, len(self), self._empty)
                self._outs = self._images.unbind()
            return self._outs


def _start(
    tasks: "SimpleQueue[tuple[PendingBatch, int] | None]",
    stopped: threading.Event,
    num_threads: int,
    device: torch.device,
) -> list[threading.Thread]:
    """Start the threads, each limited to one intra-op thread: torch would otherwise give each of them a thread pool.

    torch keeps a number of intra-op threads for each thread, and a default for new threads. Setting the former sets the
    latter too, so this thread sets its previous number again at the end, to restore the default.
    """
    previous = torch.get_num_threads()
    have_started = threading.Barrier(num_threads + 1)

    def work() -> None:
        use_device(device)
        torch.get_num_threads()  # without this call, torch would apply the default later and undo the next line
        torch.set_num_threads(1)
        have_started.wait()
        while (task := tasks.get()) is not None:
            batch, position = task
            if not stopped.is_set():
                batch.fill(position)

    threads = [
        threading.Thread(target=work, name=f"{LOADER_THREADS}-{number}", daemon=True) for number in range(num_threads)
    ]
    for thread in threads:
        thread.start()
    have_started.wait()
    torch.set_num_threads(previous)
    return threads
