"""Computes which samples each rank reads at each step: a distributed sampler without any state.

Step k of an epoch starts at position k x global_batch_size, so a resume at any step starts at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from distrain.config.batching import Batching, count_steps_per_epoch


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward pass, by their indices int64[n]; in training, all from one epoch.

    `copies` int64[n] counts repeated reads of a sample in an epoch from 0; None where each is read once.
    """

    indices: NDArray[np.int64]
    epoch: int = 0
    copies: NDArray[np.int64] | None = None

    def head(self, count: int) -> "MicroBatch":
        """Return the first `count` samples, or all where there are fewer."""
        copies = None if self.copies is None else self.copies[:count]
        return MicroBatch(self.indices[:count], self.epoch, copies)

    def rng_key(self, position: int) -> tuple[int, ...]:
        """Return the key of a sample's random draws, besides the seed: epoch, index and, if not 0, copy."""
        copy = 0 if self.copies is None else int(self.copies[position])
        return (self.epoch, int(self.indices[position]), *([copy] if copy else []))


@dataclass(frozen=True)
class EpochOrder:
    """The samples of an epoch by position: `indices` int64[n] and `copies` int64[n], as in a `MicroBatch`."""

    indices: NDArray[np.int64]
    copies: NDArray[np.int64] | None = None

    def micro_batch(self, start: int, stop: int, epoch: int) -> MicroBatch:
        """Return the samples at the positions from `start` up to, not including, `stop`."""
        copies = None if self.copies is None else self.copies[start:stop]
        return MicroBatch(self.indices[start:stop], epoch, copies)


Sampler = Callable[[int], EpochOrder]  # gives the order of an epoch, a pure function of its number


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one optimizer step over all ranks; `local` are the indices of this rank's micro-batches."""

    num_samples: int
    ranges: tuple[tuple[int, int], ...]  # [start, stop) of each micro-batch in the global batch
    local: range

    @property
    def num_micro_batches(self) -> int:
        """The number of micro-batches."""
        return len(self.ranges)

    @cached_property
    def sizes(self) -> list[int]:
        """The number of samples of each micro-batch."""
        return [stop - start for start, stop in self.ranges]


class TrainSampler:
    """The training samples of one rank, step by step: a pure function of the step."""

    def __init__(self, *, num_samples: int, sampler: Sampler, batching: Batching, drop_last: bool, rank: int) -> None:
        size = batching.global_batch_size
        self.steps_per_epoch = count_steps_per_epoch(num_samples, size, drop_last=drop_last)
        self.num_samples = num_samples
        self.batching = batching
        self.rank = rank
        self._sampler = sampler
        self._draw = lru_cache(maxsize=1)(sampler)  # keeps the order of the current epoch
        self._full = self._global_batch(size)
        tail = num_samples - (self.steps_per_epoch - 1) * size
        self._last = self._full if tail >= size else self._global_batch(tail)

    def global_batch(self, step: int) -> GlobalBatch:
        """Return the global batch of step `step`, counted from 0 over the whole run."""
        return self._last if (step + 1) % self.steps_per_epoch == 0 else self._full

    def micro_batches(self, steps: Iterable[int]) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of the steps."""
        for step in steps:
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            order = self._draw(epoch)
            global_batch = self.global_batch(step)
            start = step_in_epoch * self.batching.global_batch_size
            for index in global_batch.local:
                begin, end = global_batch.ranges[index]
                yield order.micro_batch(start + begin, start + end, epoch)

    @property
    def global_batches(self) -> tuple[GlobalBatch, ...]:
        """The one or two kinds of global batches of an epoch: all but the last one, and the last one."""
        return (self._last,) if self.steps_per_epoch == 1 else (self._full, self._last)

    def first_micro_batch(self) -> MicroBatch:
        """Return this rank's first micro-batch of step 0, or rank 0's where this rank has none."""
        global_batch = self.global_batch(0)
        begin, end = global_batch.ranges[global_batch.local.start if global_batch.local else 0]
        return self._draw(0).micro_batch(begin, end, 0)

    def samples(self, step: int, micro_batches: Iterable[int] | None = None) -> NDArray[np.int64]:
        """Return the samples of a step over all ranks, int64[n]; only of `micro_batches`, by index, where given."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        global_batch, start = self.global_batch(step), step_in_epoch * self.batching.global_batch_size
        indices = self._draw(epoch).indices[start : start + global_batch.num_samples]
        if micro_batches is None:
            return indices
        return np.concatenate([indices[slice(*global_batch.ranges[index])] for index in micro_batches])

    def digest(self) -> str:
        """Return a digest of the order of the first epoch."""
        return xxhash.xxh3_128_hexdigest(self._draw(0).indices.tobytes())

    def steps_with(self, samples: Sequence[int], epoch: int) -> list[int]:
        """Return the steps of an epoch that train on any of `samples`."""
        positions = np.flatnonzero(np.isin(self._sampler(epoch).indices, samples))
        steps = np.unique(positions // self.batching.global_batch_size)
        return (epoch * self.steps_per_epoch + steps[steps < self.steps_per_epoch]).tolist()  # type: ignore[no-any-return]

    def _global_batch(self, num_samples: int) -> GlobalBatch:
        ranges = tuple(self.batching.split(num_samples))
        return GlobalBatch(num_samples, ranges, self.batching.assign(len(ranges), self.rank))


def evaluation_order(*, num_samples: int, batch_size: int, rank: int, world_size: int) -> list[MicroBatch]:
    """Return this rank's batches: all ranks read each sample once, and the batches are the same at any world size."""
    starts = range(0, num_samples, batch_size)[rank::world_size]
    return [MicroBatch(np.arange(s, min(s + batch_size, num_samples), dtype=np.int64)) for s in starts]
