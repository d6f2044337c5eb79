"""Owns the way of samples into batches on the device, in this process or in loader processes, in the order given."""

import multiprocessing
import signal
from collections.abc import Generator, Iterable, Iterator
from typing import cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from distrain.data.order import MicroBatch
from distrain.data.source import Source, TensorSource, stack_targets
from distrain.data.transforms import seed_sample
from distrain.errors import DataError
from distrain.process import STOP_SIGNALS, die_with_parent, release_signals

Batch = tuple[torch.Tensor, torch.Tensor]  # images [n, channels, height, width], targets of a `Source`


class BatchReader(Dataset["Batch | DataError"]):
    """Reads one micro-batch: what loader processes run, and what runs here where there are none."""

    def __init__(self, source: Source, transforms: nn.Module | None, *, seed: int) -> None:
        self.source = source
        self.transforms = transforms
        self.seed = seed

    def __getitem__(self, micro_batch: MicroBatch) -> "Batch | DataError":
        """Return the batch; a `DataError` is returned, not raised, so that it crosses processes as it is."""
        if isinstance(self.source, TensorSource) and self.transforms is None:
            indices = torch.from_numpy(micro_batch.indices)
            return self.source.images.index_select(0, indices), self.source.targets.index_select(0, indices)
        try:
            return self._stack(self._read(micro_batch), micro_batch)
        except DataError as error:
            return error

    def _read(self, micro_batch: MicroBatch) -> list[tuple[torch.Tensor, int | torch.Tensor]]:
        indices = micro_batch.indices.tolist()
        copies = [0] * len(indices) if micro_batch.copies is None else micro_batch.copies.tolist()
        samples = []
        for index, copy in zip(indices, copies, strict=True):
            image, target = self.source.read(index)
            if self.transforms is not None:
                seed_sample(self.seed, micro_batch.epoch, index, copy)
                image = self.transforms(image)
            samples.append((image, target))
        return samples

    def _stack(self, samples: list[tuple[torch.Tensor, int | torch.Tensor]], micro_batch: MicroBatch) -> Batch:
        shape, dtype = samples[0][0].shape, samples[0][0].dtype
        for (image, _), index in zip(samples, micro_batch.indices, strict=True):
            if image.shape != shape:
                raise DataError(
                    f"{self.source.describe(int(index))} is {_size(image.shape)} after its transforms, others of its "
                    f"batch are {_size(shape)}; end augment.train and augment.eval with a transform of fixed size"
                )
            if image.dtype != dtype:  # torch would stack bytes of 0 to 255 with numbers of 0 to 1
                raise DataError(
                    f"{self.source.describe(int(index))} is of {image.dtype} after its transforms, others of its batch "
                    f"are of {dtype}; end augment.train and augment.eval with ToDtype"
                )
        return torch.stack([image for image, _ in samples]), stack_targets([target for _, target in samples])


def read_batches(
    reader: BatchReader, micro_batches: Iterable[MicroBatch], *, num_workers: int, device: torch.device
) -> Generator[Batch, None, None]:
    """Yield the batches of `micro_batches` in their order, on `device`; raises `DataError` for one that is bad.

    Close it when no more are wanted: that ends the loader processes. Left to the garbage collector, it may be another
    thread that ends them, at any time, and waits for them with whatever it holds.
    """
    batches: Iterable[Batch | DataError]
    if num_workers == 0:
        batches = map(reader.__getitem__, micro_batches)
    else:
        batches = DataLoader(
            reader,
            sampler=cast("Iterable[int]", micro_batches),  # an index is a micro-batch: nothing is collated
            batch_size=None,
            num_workers=num_workers,
            worker_init_fn=_live_for_parent,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its base seed would else be drawn from the global generator
            multiprocessing_context="fork",
        )
    iterator: Iterator[Batch | DataError] = iter(batches)
    try:
        for batch in iterator:
            if isinstance(batch, DataError):
                raise batch
            images, targets = batch
            if device.type != "cpu":
                images = images.to(device, non_blocking=True)
                targets = targets.to(device, non_blocking=True)
            yield images, targets
    finally:
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()  # torch has no public way to do it now


def _live_for_parent(_: int) -> None:
    """Die with the training process; leave to it a stop that is sent to the whole group: it still wants its batches.

    The handlers do nothing, and unlike ignored signals they are not handed on to programs that a dataset starts.
    """
    parent = multiprocessing.parent_process()
    die_with_parent(parent.pid if parent is not None else None)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    release_signals()


def _size(shape: torch.Size) -> str:
    return "x".join(str(n) for n in shape)
