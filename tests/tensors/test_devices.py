"""Helper threads of a rank with the second GPU never use the first one, which would create a context there."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from distrain.checkpoint.staging import StagedTensors
from distrain.config.batching import Batching
from distrain.data.loading.sampler import MicroBatch
from distrain.data.loading.threads import read_in_threads
from distrain.distributed import bucket_reduction
from distrain.distributed.bucket_reduction import BucketReducer
from distrain.distributed.world import World

SECOND = torch.device("cuda", 1)


class Driver:
    """CUDA's state of the threads: each starts with GPU 0, and gets a context on the GPUs that it sets or uses."""

    def __init__(self) -> None:
        self._own = threading.local()
        self.contexts: set[int] = set()

    def current(self) -> int:
        return getattr(self._own, "gpu", 0)

    def set_device(self, gpu: torch.device | int) -> None:
        index = torch.device("cuda", gpu).index if isinstance(gpu, int) else gpu.index
        self._own.gpu = index
        self.contexts.add(index)

    def set_stream(self, stream: "Stream") -> None:
        if stream.device.index != self.current():
            self.set_device(stream.device)

    def use(self) -> None:
        self.contexts.add(self.current())


class Stream:
    def __init__(self, device: torch.device | int) -> None:
        self.device = torch.device("cuda", device) if isinstance(device, int) else device

    def record_event(self) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, _: object) -> None: ...


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """The driver below torch's own `torch.cuda.stream`, as the main thread of a rank with the second GPU leaves it."""
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "set_device", driver.set_device)
    monkeypatch.setattr(torch.cuda, "set_stream", driver.set_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(device or driver.current()))
    monkeypatch.setattr(torch.cuda, "_get_device_index", lambda *_, **__: 0)
    empty = torch.empty

    def empty_page_locked(*size: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        if pin_memory:
            driver.use()
        return empty(*size, **kwargs)

    monkeypatch.setattr(torch, "empty", empty_page_locked)
    driver.set_device(SECOND)
    yield driver
    assert driver.contexts == {1}


def in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_thread_that_stages_a_checkpoint(driver: Driver) -> None:
    with FakeTensorMode():
        held = StagedTensors({"weight": torch.empty(2, device=SECOND)}, stable={"weight"})

    def stage() -> None:
        with held.on_copy_stream():
            driver.use()

    in_thread(stage)


def test_thread_that_exchanges_sums(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_reduction, "_group_of", lambda *_: None)
    monkeypatch.setattr(BucketReducer, "_combine", lambda *_: driver.use())
    sums = BucketReducer(World(rank=1, size=2, local_rank=1, device=SECOND), Batching(4, 2, 0, 2), num_buckets=2)
    sums.submit(torch.zeros(2), {}, 2)
    sums.finish()


def test_threads_that_read_samples(driver: Driver) -> None:
    def begin(_: MicroBatch) -> Callable[[int, torch.Tensor | None], tuple[torch.Tensor, int]]:
        return lambda position, _: (torch.full((1, 2, 2), position), position)

    batches = read_in_threads(begin, [MicroBatch(np.arange(4))], num_threads=2, device=SECOND)
    assert [found is not None and found[1] for _, found in batches] == [[0, 1, 2, 3]]
