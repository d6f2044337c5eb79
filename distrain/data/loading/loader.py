"""Reads samples into batches on the device, in the order given: whole, here, in threads or in processes.

They differ in speed alone; `choose_loader` chooses.
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
from distrain.messages import MEBIBYTE
from distrain.rng import Purpose
from distrain.system.exits import own_frame

Loader = Literal["auto", "threads", "processes"]

GPU_SHARE = 0.2  # of its free memory, at most, for the images of a split

log = logging.getLogger(__name__)


class BatchReader:
    """Reads one micro-batch: what loader processes run, and what runs here where there are none.

    The same micro-batch gives the same bits by every way of reading. Cached images that are transformed in whole
    batches are so on `device`, if `GPU_SHARE` of its free memory holds them; other batches lie on the CPU.
    """

    def __init__(
        self, source: Source, transforms: Transforms | None, *, seed: int, device: torch.device | None = None
    ) -> None:
        self.source = source
        self.transforms = transforms
        self.seed = seed
        if isinstance(source, DatasetSource):
            source.seed_stream(seed)
        self._held: Batch | None = None
        if _is_in_memory(source) and (transforms is None or transforms.is_batched):
            self._held = _put(source.images, source.targets, device or torch.device("cpu"))

    @property
    def device(self) -> torch.device:
        """Where the batches lie that it gives."""
        return torch.device("cpu") if self._held is None else self._held[0].device

    @property
    def is_whole(self) -> bool:
        """Whether the samples of a batch are gathered and transformed all at once."""
        return self._held is not None

    @property
    def is_thread_safe(self) -> bool:
        """Whether several threads may read at once."""
        return self.source.is_thread_safe and (self.transforms is None or self.transforms.is_thread_safe)

    def read(
        self, micro_batch: MicroBatch, empty: Allocator = torch.empty, note: Note | None = None
    ) -> "Batch | DataError":
        """Return the batch; a `DataError` is returned, not raised, so that it comes at its turn.

        Images that are read one by one are written into what `empty` returns; `note` is called before each.
        """
        try:
            if self._held is not None:
                return self._gather(*self._held, micro_batch)
            return self._read_each(micro_batch, empty, note or _ignore)
        except DataError as error:
            return error

    def begin(self, micro_batch: MicroBatch) -> ReadSample:
        """Draw for a micro-batch, and return what reads its samples by their positions in it.

        That gives an image, transformed, and its target; it raises `DataError`. Where the place of the image in the
        batch is given, the image may come written into it, and is that tensor then.
        """
        indices = micro_batch.indices.tolist()
        drawn = None if self.transforms is None else self.transforms.draw(micro_batch, seed=self.seed)

        def read(position: int, place: torch.Tensor | None) -> Sample:
            if not self.source.is_thread_safe:
                seed_generators(self.seed, Purpose.READING, *micro_batch.place(position))
            image, target = self.source.read(indices[position])
            if drawn is not None:
                try:
                    image = drawn.apply_leading(image, position, place)
                except ValueError as error:
                    raise self._refused(indices[position], error) from None
                image = self._transform_seeded(drawn, image, position, indices[position])
            return image, target

        return read

    def _transform_seeded(self, drawn: DrawnTransforms, image: torch.Tensor, position: int, index: int) -> torch.Tensor:
        """Return an image after the transforms that may draw anything; what the user's own raise is theirs to read."""
        try:
            return drawn.apply_seeded_rest(image, position)
        except Exception as error:
            if isinstance(error, DataError | MemoryError) or own_frame(error) is not None:
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
        read, indices, count = self.begin(micro_batch), micro_batch.indices.tolist(), len(micro_batch.indices)
        note(indices[0])
        first, target = read(0, None)
        images, targets = empty_batch(first, count, empty), [target]
        places = images.unbind()
        places[0].copy_(first)
        for position in range(1, count):
            place = places[position]
            note(indices[position])
            image, target = read(position, place)
            if image is not place:
                self._check_like(image, first, indices[position])
                place.copy_(image)
            targets.append(target)
        return images, stack_targets(targets)

    def _check_like(self, image: torch.Tensor, first: torch.Tensor, index: int) -> None:
        if image.shape != first.shape:
            raise DataError(
                f"{self.source.describe(index)} is {_size(image.shape)} after its transforms, others of its "
                f"batch are {_size(first.shape)}; end augment.train and augment.eval with a transform of fixed size"
            )
        if image.dtype != first.dtype:  # torch would mix bytes of 0 to 255 with numbers of 0 to 1
            raise DataError(
                f"{self.source.describe(index)} is of {image.dtype} after its transforms, others of its batch "
                f"are of {first.dtype}; end augment.train and augment.eval with ToDtype"
            )


def _gather_on_gpu(
    images: torch.Tensor, targets: torch.Tensor, micro_batch: MicroBatch, drawn: DrawnTransforms | None
) -> Batch:
    """Return a batch of what lies on a GPU.

    All that is decided on the host goes there in one copy from page-locked memory: after a copy from other memory the
    host waits until the GPU has done all the work that it was given.
    """
    rows = [micro_batch.indices[None]]
    if drawn is not None:
        rows += drawn.find_places((images.shape[-2], images.shape[-1]))
    numbers = np.concatenate([own for own in rows if len(own)])
    there = torch.from_numpy(numbers).pin_memory().to(images.device, non_blocking=True)  # int64 [k, n]
    (indices,), *places = torch.split(there, [len(own) for own in rows])
    chosen = images.index_select(0, indices)
    return drawn.apply_by(places, chosen) if drawn else chosen, targets.index_select(0, indices)


def read_batches(
    reader: BatchReader,
    micro_batches: Iterable[MicroBatch],
    *,
    num_workers: int,
    device: torch.device,
    loader: Loader = "auto",
) -> Generator[Batch, None, None]:
    """Yield the batches of `micro_batches` in their order, on `device`; raises `DataError` for one that is bad.

    Close it when no more are wanted: that ends the loader's threads or processes. Left to the garbage collector, it may
    be another thread that ends them, at any time, and waits for them with whatever it holds. Raises `RecipeError` at
    the first batch where threads are asked for and cannot read.
    """
    way = choose_loader(reader, loader, num_workers=num_workers)
    if way == "none":
        yield from _read_here(reader, micro_batches, device=device)
        return
    read = _read_in_threads if way == "threads" else _read_in_processes
    with closing(read(reader, micro_batches, num_workers=num_workers, device=device)) as ahead:
        yield from map(_checked, ahead) if device.type == "cpu" else _copy_ahead(ahead, device)


def choose_loader(reader: BatchReader, loader: Loader, *, num_workers: int) -> Literal["none", "threads", "processes"]:
    """Return what reads ahead: by `data.loader`, or none where batches are read whole, or no workers are wanted.

    Raises `RecipeError` where threads are asked for and source or transforms are not fit for them.
    """
    if loader == "threads" and not reader.is_thread_safe:
        raise RecipeError(
            "data.loader=threads: the source, or one of the transforms, is not fit for several threads at once; they "
            "read files of images and tensors, and run RandomCrop, RandomResizedCrop, RandomHorizontalFlip, "
            "RandomVerticalFlip, AlternatingFlip, Cutout, Resize and CenterCrop; --set data.loader=processes"
        )
    if num_workers == 0:
        return "none"
    if loader != "auto":
        return loader
    return "none" if reader.is_whole else "processes"


def _read_here(
    reader: BatchReader, micro_batches: Iterable[MicroBatch], *, device: torch.device
) -> Generator[Batch, None, None]:
    if device.type == "cpu" or reader.device == device:
        for micro_batch in micro_batches:  # a StopIteration of the user's would pass for the end of a map
            yield _checked(reader.read(micro_batch))
        return
    read = partial(reader.read, empty=partial(torch.empty, pin_memory=True))
    yield from _copy_ahead((_page_locked(read(micro_batch)) for micro_batch in micro_batches), device)


def _page_locked(batch: "Batch | DataError") -> "Batch | DataError":
    """Return a batch in memory from which the GPU copies by itself, while the host continues."""
    return batch if isinstance(batch, DataError) else (batch[0].pin_memory(), batch[1].pin_memory())


def _read_in_threads(
    reader: BatchReader, micro_batches: Iterable[MicroBatch], *, num_workers: int, device: torch.device
) -> Generator["Batch | DataError", None, None]:
    read = read_in_threads(reader.begin, micro_batches, num_threads=num_workers, device=device)
    with closing(read) as gathered:
        for micro_batch, found in gathered:
            if found is None:
                yield reader.read(micro_batch)  # once more, in the order of the samples, for the error of the first
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
    """Yield batches on a GPU, each copied from pinned memory while the step of the one before it computes.

    A stream of its own copies; the stream that computes waits for it on the device, and the host for neither.
    """
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    coming: tuple[Batch | DataError, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            copy = batch if isinstance(batch, DataError) else _move(batch, device=device)
            has_come = copying.record_event()
        if coming is not None:
            yield _take(*coming, device)
        coming = copy, has_come
    if coming is not None:
        yield _take(*coming, device)


def _take(batch: "Batch | DataError", has_come: torch.cuda.Event, device: torch.device) -> Batch:
    images, targets = _checked(batch)
    computing = torch.cuda.current_stream(device)
    computing.wait_event(has_come)
    for tensor in (images, targets):
        tensor.record_stream(computing)  # its memory is not given to another copy before the step is through with it
    return images, targets


def _checked(batch: "Batch | DataError") -> Batch:
    if isinstance(batch, DataError):
        raise batch
    return batch


def _move(batch: Batch, *, device: torch.device) -> Batch:
    images, targets = batch
    return images.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def _ignore(_: int) -> None:
    """Note nothing: here whoever reads a sample knows which one it is."""


def _is_in_memory(source: Source) -> TypeGuard[TensorSource | CachedSource]:
    """Whether all images are at hand; those of a large file come from its disk, and are better read ahead."""
    if isinstance(source, TensorSource):
        return not source.is_mapped or source.images.nbytes <= MAX_CACHED_BYTES
    return isinstance(source, CachedSource)


def _put(images: torch.Tensor, targets: torch.Tensor, device: torch.device) -> Batch:
    """Return held images and targets on the device, where `GPU_SHARE` of its free memory holds them."""
    if device.type != "cuda" or images.nbytes > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images, targets
    log.info("%d images are cached on the GPU: %.1f MiB", len(images), images.nbytes / MEBIBYTE)
    return images.to(device), targets.to(device)


def _size(shape: torch.Size) -> str:
    return "x".join(str(n) for n in shape)
