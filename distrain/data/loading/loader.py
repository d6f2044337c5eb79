"""Reads samples into batches on the device, in a given order: from memory, in this thread, in threads or in processes.

The methods differ only in speed; `choose_loader` chooses one.
"""

import logging
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from typing import Literal, TypeGuard

import numpy as np
import torch

from distrain.data.loading.processes import Note, read_in_processes
from distrain.data.loading.sampler import MicroBatch
from distrain.data.loading.threads import ReadSample, Sample, read_in_threads
from distrain.data.sources.base import Allocator, Batch, DatasetSource, Source, TensorSource, empty_batch, stack_targets
from distrain.data.sources.cached import MAX_CACHED_BYTES, CachedSource
from distrain.data.transforms.pipeline import DrawnTransforms, Transforms
from distrain.errors import DataError, RecipeError
from distrain.global_rng import seed_generators
from distrain.messages import MEBIBYTE, counted
from distrain.rng import Purpose
from distrain.system.exits import user_frame

Loader = Literal["auto", "threads", "processes"]

GPU_SHARE = 0.2  # of its free memory, at most, for the cached images of a split

log = logging.getLogger(__name__)


class BatchReader:
    """Reads one micro-batch, in a loader process or, where there are none, in this one.

    Every loader gives the same bits for the same micro-batch. Images that are in memory and transformed in whole
    batches are kept on `device` if they fit into `GPU_SHARE` of its free memory; other batches are on the CPU.
    """

    def __init__(
        self, source: Source, transforms: Transforms | None, *, seed: int, device: torch.device | None = None
    ) -> None:
        self.source = source
        self.transforms = transforms
        self.seed = seed
        if isinstance(source, DatasetSource):
            source.seed_stream(seed)
        self._cached: Batch | None = None
        if _is_in_memory(source) and (transforms is None or transforms.is_batched):
            self._cached = _to_device(source.images, source.targets, device or torch.device("cpu"))

    @property
    def device(self) -> torch.device:
        """The device of the batches that it returns."""
        return torch.device("cpu") if self._cached is None else self._cached[0].device

    @property
    def is_in_memory(self) -> bool:
        """Whether all samples are in memory, so that a batch is gathered and transformed as a whole."""
        return self._cached is not None

    @property
    def is_thread_safe(self) -> bool:
        """Whether several threads may read at once."""
        return self.source.is_thread_safe and (self.transforms is None or self.transforms.is_thread_safe)

    def read(
        self, micro_batch: MicroBatch, empty: Allocator = torch.empty, note: Note | None = None
    ) -> "Batch | DataError":
        """Return the batch; a `DataError` is returned, not raised, so that it is reported in the order of the batches.

        Images that are read one by one are written into a tensor from `empty`; `note` is called before each.
        """
        try:
            if self._cached is not None:
                return self._gather(*self._cached, micro_batch)
            return self._read_each(micro_batch, empty, note or _ignore)
        except DataError as error:
            return error

    def prepare(self, micro_batch: MicroBatch) -> ReadSample:
        """Draw random numbers for a micro-batch, and return a function that reads its samples by position.

        The function returns a transformed image and its target, and raises `DataError`. Where the image's row of the
        batch is given as `out`, the image may be written to it; then that tensor is returned.
        """
        indices = micro_batch.indices.tolist()
        drawn = None if self.transforms is None else self.transforms.draw(micro_batch, seed=self.seed)

        def read(position: int, out: torch.Tensor | None) -> Sample:
            if not self.source.is_thread_safe:
                seed_generators(self.seed, Purpose.READING, *micro_batch.rng_key(position))
            image, target = self.source.read(indices[position])
            if drawn is not None and isinstance(target, torch.Tensor) and self.source.target == "mask":
                image, target = self._transform_with_mask(drawn, image, target, position, indices[position])
            elif drawn is not None:
                try:
                    image = drawn.apply_leading(image, position, out)
                except ValueError as error:
                    raise self._refused(indices[position], error) from None
                image = self._transform_seeded(drawn, image, position, indices[position])
            if image.ndim != 3:
                message = f"{self.source.describe(indices[position])} is {_size(image.shape)} after its transforms"
                raise DataError(f"{message}; return a tensor [channels, height, width]")
            return image, target

        return read

    def _transform_seeded(self, drawn: DrawnTransforms, image: torch.Tensor, position: int, index: int) -> torch.Tensor:
        """Return an image after the unseeded transforms; errors of the user's transforms are raised unchanged."""
        try:
            return drawn.apply_seeded_rest(image, position)
        except Exception as error:
            if isinstance(error, DataError | MemoryError) or user_frame(error) is not None:
                raise
            raise self._refused(index, error) from error

    def _transform_with_mask(
        self, drawn: DrawnTransforms, image: torch.Tensor, mask: torch.Tensor, position: int, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image and its mask after the transforms; errors of the user's transforms are raised unchanged."""
        try:
            return drawn.apply_with_mask(image, mask, position)
        except Exception as error:
            if isinstance(error, DataError | MemoryError) or user_frame(error) is not None:
                raise
            raise self._refused(index, error) from error

    def _gather(self, images: torch.Tensor, targets: torch.Tensor, micro_batch: MicroBatch) -> Batch:
        drawn = None if self.transforms is None else self.transforms.draw(micro_batch, seed=self.seed)
        try:
            if images.device.type != "cpu":
                return _gather_on_gpu(images, targets, micro_batch, drawn)
            indices = torch.from_numpy(micro_batch.indices)
            chosen = images.index_select(0, indices)
            return drawn.apply_to_batch(chosen) if drawn else chosen, targets.index_select(0, indices)
        except ValueError as error:
            raise self._refused(int(micro_batch.indices[0]), error) from None

    def _refused(self, index: int, error: Exception) -> DataError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return DataError(
            f"{self.source.describe(index)} cannot be transformed ({reason}); change augment.train or .eval"
        )

    def _read_each(self, micro_batch: MicroBatch, empty: Allocator, note: Note) -> Batch:
        read, indices, count = self.prepare(micro_batch), micro_batch.indices.tolist(), len(micro_batch.indices)
        note(indices[0])
        first, target = read(0, None)
        images, targets = empty_batch(first, count, empty), [target]
        outs = images.unbind()
        outs[0].copy_(first)
        for position in range(1, count):
            out = outs[position]
            note(indices[position])
            image, target = read(position, out)
            if image is not out:
                if (image.shape, image.dtype) != (first.shape, first.dtype):
                    third = read(2, None)[0] if position == 1 and count > 2 else None
                    raise self._unlike(indices[: position + 1], first, image, third)
                out.copy_(image)
            targets.append(target)
        return images, stack_targets(targets)

    def _unlike(
        self, indices: list[int], first: torch.Tensor, image: torch.Tensor, third: torch.Tensor | None
    ) -> DataError:
        """Return the error of the sample whose image differs from the others: the last of `indices`, or the first.

        It is the first one if the second differs from it and the `third` is like the second.
        """
        odd, (image, other) = indices[-1], (image, first)
        if third is not None and (third.shape, third.dtype) == (image.shape, image.dtype):
            odd, (image, other) = indices[0], (first, image)
        name = self.source.describe(odd)
        if image.shape != other.shape:
            return DataError(
                f"{name} is {_size(image.shape)} after its transforms, but others of its batch are "
                f"{_size(other.shape)}; end augment.train and augment.eval with a transform of fixed size"
            )
        return DataError(  # torch would mix bytes from 0 to 255 with floats from 0 to 1
            f"{name} is {image.dtype} after its transforms, but others of its batch are {other.dtype}; end "
            f"augment.train and augment.eval with ToDtype"
        )


def _gather_on_gpu(
    images: torch.Tensor, targets: torch.Tensor, micro_batch: MicroBatch, drawn: DrawnTransforms | None
) -> Batch:
    """Return a batch of images that are on a GPU.

    All indices and parameters are copied there at once from page-locked memory: a copy from pageable memory would make
    the host wait until the GPU has finished all queued work.
    """
    rows = [micro_batch.indices[None]]
    if drawn is not None:
        rows += drawn.to_parameters((images.shape[-2], images.shape[-1]))
    numbers = np.concatenate([row for row in rows if len(row)])
    on_device = torch.from_numpy(numbers).pin_memory().to(images.device, non_blocking=True)  # int64 [k, n]
    (indices,), *parameters = torch.split(on_device, [len(own) for own in rows])
    chosen = images.index_select(0, indices)
    return drawn.apply_parameters(parameters, chosen) if drawn else chosen, targets.index_select(0, indices)


def read_batches(
    reader: BatchReader,
    micro_batches: Iterable[MicroBatch],
    *,
    num_workers: int,
    device: torch.device,
    loader: Loader = "auto",
) -> Generator[Batch, None, None]:
    """Yield the batches of `micro_batches` in their order, on `device`; raises `DataError` for a bad sample.

    Close the generator to end the loader's threads or processes. If that is left to the garbage collector, any thread
    may have to wait for them at any time, with whatever locks it holds. Raises `RecipeError` at the first batch where
    the recipe requests threads and the source or the transforms do not support them.
    """
    kind = choose_loader(reader, loader, num_workers=num_workers)
    if kind == "none":
        yield from _read_here(reader, micro_batches, device=device)
        return
    read = _read_in_threads if kind == "threads" else _read_in_processes
    with closing(read(reader, micro_batches, num_workers=num_workers, device=device)) as ahead:
        yield from map(_checked, ahead) if device.type == "cpu" else _copy_ahead(ahead, device)


def choose_loader(reader: BatchReader, loader: Loader, *, num_workers: int) -> Literal["none", "threads", "processes"]:
    """Return the loader for `data.loader`; "none" where samples are in memory, or without workers.

    Raises `RecipeError` where threads are requested but the source or the transforms are not thread-safe.
    """
    if loader == "threads" and not reader.is_thread_safe:
        raise RecipeError(
            "data.loader=threads: the source, or one of the transforms, is not thread-safe; threads can read image "
            "files and tensors, and run RandomCrop, RandomResizedCrop, RandomHorizontalFlip, RandomVerticalFlip, "
            "AlternatingFlip, Cutout, Resize and CenterCrop; --set data.loader=processes"
        )
    if num_workers == 0:
        return "none"
    if loader != "auto":
        return loader
    return "none" if reader.is_in_memory else "processes"


def _read_here(
    reader: BatchReader, micro_batches: Iterable[MicroBatch], *, device: torch.device
) -> Generator[Batch, None, None]:
    if device.type == "cpu" or reader.device == device:
        for micro_batch in micro_batches:  # with `map`, a StopIteration in user code would look like the end
            yield _checked(reader.read(micro_batch))
        return
    read = partial(reader.read, empty=partial(torch.empty, pin_memory=True))
    yield from _copy_ahead((_page_locked(read(micro_batch)) for micro_batch in micro_batches), device)


def _page_locked(batch: "Batch | DataError") -> "Batch | DataError":
    """Return a batch in page-locked memory, which the GPU copies asynchronously."""
    return batch if isinstance(batch, DataError) else (batch[0].pin_memory(), batch[1].pin_memory())


def _read_in_threads(
    reader: BatchReader, micro_batches: Iterable[MicroBatch], *, num_workers: int, device: torch.device
) -> Generator["Batch | DataError", None, None]:
    read = read_in_threads(reader.prepare, micro_batches, num_threads=num_workers, device=device)
    with closing(read) as gathered:
        for micro_batch, found in gathered:
            if found is None:
                yield reader.read(micro_batch)  # again in the order of the samples, for the first error
                continue
            images, targets = found
            stacked = stack_targets(targets)
            yield images, stacked.pin_memory() if device.type == "cuda" else stacked


def _read_in_processes(
    reader: BatchReader, micro_batches: Iterable[MicroBatch], *, num_workers: int, device: torch.device
) -> Generator["Batch | DataError", None, None]:
    describe = reader.source.describe
    read = read_in_processes(reader.read, micro_batches, num_processes=num_workers, describe=describe)
    with closing(read) as batches:
        for batch in batches:
            yield _page_locked(batch) if device.type == "cuda" else batch


def _copy_ahead(batches: Iterable["Batch | DataError"], device: torch.device) -> Generator[Batch, None, None]:
    """Yield batches on a GPU, each copied from page-locked memory while the step of the batch before it computes.

    A separate stream copies. The compute stream waits for it on the device; the host waits for neither.
    """
    copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    pending: tuple[Batch | DataError, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copy_stream):
            copy = batch if isinstance(batch, DataError) else _move(batch, device=device)
            copied = copy_stream.record_event()
        if pending is not None:
            yield _wait_for_copy(*pending, device)
        pending = copy, copied
    if pending is not None:
        yield _wait_for_copy(*pending, device)


def _wait_for_copy(batch: "Batch | DataError", copied: torch.cuda.Event, device: torch.device) -> Batch:
    images, targets = _checked(batch)
    compute_stream = torch.cuda.current_stream(device)
    compute_stream.wait_event(copied)
    for tensor in (images, targets):
        tensor.record_stream(compute_stream)  # its memory is not reused before the step has finished with it
    return images, targets


def _checked(batch: "Batch | DataError") -> Batch:
    if isinstance(batch, DataError):
        raise batch
    return batch


def _move(batch: Batch, *, device: torch.device) -> Batch:
    images, targets = batch
    return images.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def _ignore(_: int) -> None:
    """Do nothing: only loader processes report the sample that they read."""


def _is_in_memory(source: Source) -> TypeGuard[TensorSource | CachedSource]:
    """Whether all images are in memory; a large mapped file is on disk, so its images are better read ahead."""
    if isinstance(source, TensorSource):
        return not source.is_mapped or source.images.nbytes <= MAX_CACHED_BYTES
    return isinstance(source, CachedSource)


def _to_device(images: torch.Tensor, targets: torch.Tensor, device: torch.device) -> Batch:
    """Return images and targets on the device if they fit into `GPU_SHARE` of its free memory, else unchanged."""
    if device.type != "cuda" or images.nbytes > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images, targets
    log.info("%s cached on the GPU: %.1f MiB", counted(len(images), "image is", "images are"), images.nbytes / MEBIBYTE)
    return images.to(device), targets.to(device)


def _size(shape: torch.Size) -> str:
    return "x".join(str(n) for n in shape)
