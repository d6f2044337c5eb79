"""Owns the samples of another source held whole in memory, decoded once, and when that is worth it."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch

from distrain.data.source import Source, TensorSource, is_read_in_order, stack_targets, target_at
from distrain.errors import DataError, RecipeError
from distrain.generators import seed_generators
from distrain.seeds import Purpose

MOST_HELD_BYTES = 2**30  # of a split, where data.hold=auto
_SAMPLES_AT_ONCE = 64  # of a thread, before it looks whether another has failed

log = logging.getLogger(__name__)


class HeldSource:
    """The samples of another source with their `images` held, uint8 [n, channels, height, width] on the CPU.

    All words and digests are the other's: it makes no difference to a training which of the two it reads.
    """

    is_thread_safe = True

    def __init__(self, source: Source, images: torch.Tensor, targets: torch.Tensor) -> None:
        self.classes = source.classes
        self.target = source.target
        self.images = images
        self.targets = targets
        self._source = source

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    def read(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Return one image and its target."""
        return self.images[index], target_at(self.targets, index)

    def describe(self, index: int) -> str:
        """Return the other source's words for the sample."""
        return self._source.describe(index)

    def fingerprint(self) -> str:
        """Return the other source's digest."""
        return self._source.fingerprint()


def hold(
    source: Source,
    how: Literal["auto", "always", "never"],
    *,
    name: str,
    epochs: float,
    num_threads: int,
    seed: int = 0,
) -> Source:
    """Return the samples of a split held in memory where `data.hold` says so, else the source as it is.

    `auto` holds images of one size, seen while decoding, whose reading is decoding, that take `MOST_HELD_BYTES` at
    most and are read more than once in `epochs`. Every process holds images of its own: a machine with 8 processes
    takes 8 times their bytes. Raises `DataError` for an image that cannot be read, and where `always` asks for images
    that differ in size; `RecipeError` where it asks for a stream.
    """
    if how == "never" or isinstance(source, TensorSource):
        return source
    if how == "always" and is_read_in_order(source):
        raise RecipeError("data.hold=always: a stream cannot be held in memory; leave data.hold out")
    if how == "auto" and (not source.is_thread_safe or epochs <= 1):
        return source
    started = time.perf_counter()
    first, _ = source.read(0)
    if how == "auto" and first.nbytes * len(source) > MOST_HELD_BYTES:
        return source
    num_threads = num_threads if source.is_thread_safe else 1
    try:
        held = _decode(source, first, num_threads=num_threads, seed=seed)
    except _UnlikeError as error:
        if how == "auto":
            return source
        raise DataError(f"data.hold=always: {error}; leave data.hold out") from None
    log.info(
        "%d images of %s are held in memory: %.1f MiB in each process, decoded in %.1f s by %d thread%s",
        *(len(held), name, held.images.nbytes / 2**20, time.perf_counter() - started),
        *(num_threads, "" if num_threads == 1 else "s"),
    )
    return held


class _UnlikeError(Exception):
    """An image cannot be held with the others."""


def _decode(source: Source, first: torch.Tensor, *, num_threads: int, seed: int) -> HeldSource:
    if first.dtype != torch.uint8:
        raise _UnlikeError(f"{source.describe(0)} is of {first.dtype}, and bytes are held")
    images = torch.empty((len(source), *first.shape), dtype=torch.uint8)

    def decode(indices: Sequence[int]) -> list[int | torch.Tensor]:
        targets = []
        for index in indices:
            if not source.is_thread_safe:
                seed_generators(seed, Purpose.READING, 0, index)
            image, target = source.read(index)
            if image.shape != first.shape or image.dtype != torch.uint8:
                raise _UnlikeError(
                    f"{source.describe(index)} is {image.dtype} {list(image.shape)}, the first image is "
                    f"{first.dtype} {list(first.shape)}, and only images of one size are held"
                )
            images[index] = image
            targets.append(target)
        return targets

    pieces = [
        range(start, min(start + _SAMPLES_AT_ONCE, len(source))) for start in range(0, len(source), _SAMPLES_AT_ONCE)
    ]
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="distrain-decode")
    try:  # the first error is raised in the order of the samples, whichever thread was first
        targets = [target for found in executor.map(decode, pieces) for target in found]
    finally:
        executor.shutdown(cancel_futures=True)
    return HeldSource(source, images, stack_targets(targets))
