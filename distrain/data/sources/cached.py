"""Caches the decoded samples of another source in memory, where that is worthwhile."""

import logging
import time
from contextlib import closing
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distrain.data.loading.isolation import Isolated, KilledError
from distrain.data.sources.base import Source, TensorSource, is_read_in_order, stack_targets, target_at
from distrain.data.sources.decoders import load_decoders
from distrain.errors import DataError, RecipeError
from distrain.global_rng import seed_generators
from distrain.messages import MEBIBYTE, counted
from distrain.rng import Purpose

MAX_CACHED_BYTES = 2**30  # of a split, where data.cache=auto
_MAX_PROCESSES = 8  # more are hardly faster: a single process collects their results

log = logging.getLogger(__name__)


class CachedSource:
    """The samples of another source with their `images` cached, uint8 [n, channels, height, width] on the CPU.

    Names and fingerprints are those of the other source: training on either gives the same result.
    """

    has_known_targets = True
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
        """Return the other source's name for the sample."""
        return self._source.describe(index)

    def fingerprint(self) -> str:
        """Return the other source's fingerprint."""
        return self._source.fingerprint()


def cache(
    source: Source,
    how: Literal["auto", "always", "never"],
    *,
    name: str,
    epochs: float,
    num_processes: int,
    seed: int = 0,
) -> Source:
    """Return the samples of a split cached in memory where `how`, the value of `data.cache`, says so, else the source.

    `auto` caches thread-safe sources whose images have one size, need at most `MAX_CACHED_BYTES` and are read more than
    once in `epochs`. Each process has its own cache: a node with 8 processes needs 8 times the bytes. Raises
    `DataError` for an image that cannot be read and, with `always`, for images that differ in size; with `always`,
    raises `RecipeError` for a stream.
    """
    if how == "never" or isinstance(source, TensorSource):
        return source
    if how == "always" and is_read_in_order(source):
        raise RecipeError("data.cache=always: a stream cannot be cached; remove data.cache")
    if how == "auto" and (not source.is_thread_safe or epochs <= 1):
        return source
    started = time.perf_counter()
    first, _ = source.read(0)
    if how == "auto" and first.nbytes * len(source) > MAX_CACHED_BYTES:
        return source
    if how == "auto" and source.read(len(source) // 2)[0].shape != first.shape:  # photographs: no process is started
        return source
    num_processes = min(num_processes, _MAX_PROCESSES) if source.is_thread_safe else 1
    try:
        load_decoders()
        cached = _decode(source, first, num_processes=num_processes, seed=seed)
    except _MismatchError as error:
        if how == "auto":
            return source
        raise DataError(f"data.cache=always: {error}; remove data.cache") from None
    log.info(
        "%s of %s %s cached in memory: %.1f MiB in each process, decoded in %.1f s by %s",
        *(counted(len(cached), "image"), name, "is" if len(cached) == 1 else "are"),
        *(cached.images.nbytes / MEBIBYTE, time.perf_counter() - started),
        counted(num_processes, "process", "processes"),
    )
    return cached


class _MismatchError(Exception):
    """An image does not have the size or type of the others."""


def _decode(source: Source, first: torch.Tensor, *, num_processes: int, seed: int) -> CachedSource:
    if first.dtype != torch.uint8:
        raise _MismatchError(f"{source.describe(0)} is {first.dtype}, and only uint8 images are cached")
    images, targets = torch.empty((len(source), *first.shape), dtype=torch.uint8), list[int | torch.Tensor]()
    rows = images.numpy()

    def read(index: int) -> tuple[NDArray[np.uint8], int | NDArray[np.float32]]:
        if not source.is_thread_safe:
            seed_generators(seed, Purpose.READING, 0, index)
        image, target = source.read(index)
        if image.shape != first.shape or image.dtype != torch.uint8:
            raise _MismatchError(
                f"{source.describe(index)} is {image.dtype} {list(image.shape)}, the first image is "
                f"{first.dtype} {list(first.shape)}, and only images of one size are cached"
            )
        return image.numpy(), target if isinstance(target, int) else target.numpy()

    # In separate processes: an image that crashed this one could not be named in an error.
    with (
        Isolated(read, num_processes, initializer=partial(torch.set_num_threads, 1)) as processes,
        closing(processes.map(range(len(source)))) as samples,
    ):
        for index, sample in enumerate(samples):  # raises the error of the first bad sample, whichever is read first
            if isinstance(sample, KilledError):
                raise DataError(f"{source.describe(index)} cannot be read ({sample}); fix or remove it")
            rows[index], target = sample
            targets.append(target if isinstance(target, int) else torch.from_numpy(target))
    return CachedSource(source, images, stack_targets(targets))
