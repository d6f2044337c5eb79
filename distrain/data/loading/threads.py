"""Reads batches in threads of this process, some batches ahead of the consumer.

The samples of a batch are spread over the threads, and each is written into its place in one tensor. Only sources that
several threads may call at once are read like this: see `Source.is_thread_safe`.
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
SAMPLES_AHEAD = 4  # of each thread, where batches are so small that two of them are fewer

Sample = tuple[torch.Tensor, int | torch.Tensor]
# By the sample's position in its batch, and the place of its image there, once it is known: it may be written to it.
ReadSample = Callable[[int, torch.Tensor | None], Sample]
Gathered = tuple[torch.Tensor, list[int | torch.Tensor]]  # images [n, channels, height, width], targets


def read_in_threads(
    begin: Callable[[MicroBatch], ReadSample],
    micro_batches: Iterable[MicroBatch],
    *,
    num_threads: int,
    device: torch.device,
) -> Generator[tuple[MicroBatch, Gathered | None], None, None]:
    """Yield each micro-batch with its samples, in their order; None where one could not be read, or was unlike others.

    The images lie on the CPU, in page-locked memory where they are for a GPU.

    What went wrong is then found, in the order of the samples, by reading the micro-batch here once more. Close it when
    no more are wanted: that ends the threads, each after the sample at which it is.
    """
    tasks: SimpleQueue[tuple[PendingBatch, int] | None] = SimpleQueue()
    is_over = threading.Event()
    threads = _start(tasks, is_over, num_threads, device)
    ahead: deque[PendingBatch] = deque()
    upcoming = iter(micro_batches)
    try:
        while True:
            while len(ahead) < MIN_BATCHES_AHEAD or sum(map(len, ahead)) < SAMPLES_AHEAD * num_threads:
                micro_batch = next(upcoming, None)
                if micro_batch is None:
                    break
                ahead.append(PendingBatch(micro_batch, begin(micro_batch), pin_memory=device.type == "cuda"))
                for position in range(len(micro_batch.indices)):
                    tasks.put((ahead[-1], position))
            if not ahead:
                return
            batch = ahead.popleft()
            yield batch.micro_batch, batch.wait()
    finally:
        is_over.set()
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            thread.join()


class PendingBatch:
    """A micro-batch that threads fill, sample by sample; the first image to come decides what all must be like."""

    def __init__(self, micro_batch: MicroBatch, read: ReadSample, *, pin_memory: bool) -> None:
        self.micro_batch = micro_batch
        self._read = read
        self._empty = partial(torch.empty, pin_memory=pin_memory)
        self._images: torch.Tensor | None = None
        self._places: tuple[torch.Tensor, ...] | None = None
        self._targets: list[int | torch.Tensor] = [0] * len(self)
        self._num_left = len(self)
        self._is_spoilt = False
        self._lock = threading.Lock()
        self._is_done = threading.Event()

    def __len__(self) -> int:
        """Return the number of its samples."""
        return len(self.micro_batch.indices)

    def fill(self, position: int) -> None:
        """Read one sample into its place; never raises."""
        try:
            place = None if self._places is None else self._places[position]
            image, self._targets[position] = self._read(position, place)
            if place is None:
                place = self._allocate(image)[position]
            if image.shape != place.shape or image.dtype != place.dtype:
                self._is_spoilt = True
            elif image is not place:
                place.copy_(image)
        except BaseException:  # noqa: BLE001 - also an exit: who asks for the batch finds it again, and raises it there
            self._is_spoilt = True
        with self._lock:
            self._num_left -= 1
            if self._num_left == 0:
                self._is_done.set()

    def wait(self) -> Gathered | None:
        """Wait until all samples are there, and return them; None where the batch cannot be made of them."""
        self._is_done.wait()
        return None if self._is_spoilt or self._images is None else (self._images, self._targets)

    def _allocate(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self._lock:
            if self._places is None:
                self._images = empty_batch(image, len(self), self._empty)
                self._places = self._images.unbind()
            return self._places


def _start(
    tasks: "SimpleQueue[tuple[PendingBatch, int] | None]",
    is_over: threading.Event,
    num_threads: int,
    device: torch.device,
) -> list[threading.Thread]:
    """Start the threads, each of which computes in itself alone: torch would else give each of them helpers.

    torch keeps the number of helpers for each thread, and one more that new threads begin with. Setting the former sets
    the latter, so this thread sets its own again, which is as it was, for the sake of other threads to come.
    """
    own = torch.get_num_threads()
    have_begun = threading.Barrier(num_threads + 1)

    def work() -> None:
        use_device(device)
        torch.get_num_threads()  # a thread that has not asked yet would take the common number, later than it is set
        torch.set_num_threads(1)
        have_begun.wait()
        while (task := tasks.get()) is not None:
            batch, position = task
            if not is_over.is_set():
                batch.fill(position)

    threads = [
        threading.Thread(target=work, name=f"{LOADER_THREADS}-{number}", daemon=True) for number in range(num_threads)
    ]
    for thread in threads:
        thread.start()
    have_begun.wait()
    torch.set_num_threads(own)
    return threads
