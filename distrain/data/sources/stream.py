"""Reads a user's dataset that can only be iterated: numbers its samples, so that any process can read any of them.

The stream starts again in every epoch, and its sample i has position i. It orders and shuffles its samples itself:
`iter()` must give the same samples in the same order in every process, as a function of the epoch alone, which
`set_epoch(epoch)` passes to it. It must not skip samples of other processes: this module does that. The generators of
torch, numpy and Python are seeded for each `iter()` and each sample, so that random draws are the same as well.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from distrain.data.sources.outputs import read_outputs
from distrain.errors import DataError
from distrain.global_rng import seed_generators
from distrain.messages import counted
from distrain.rng import Purpose


def is_stream(dataset: Any) -> bool:
    """Whether a dataset can be iterated but not indexed; `__getitem__` of torch's base class only raises."""
    has_index = getattr(type(dataset), "__getitem__", Dataset.__getitem__) is not Dataset.__getitem__
    return hasattr(dataset, "__iter__") and not has_index


@dataclass
class _Cursor:
    """The place of an iterator of this process: before `position` of `epoch`."""

    pid: int
    epoch: int
    position: int
    iterator: Iterator[Any]


class Stream:
    """A stream with an index: number `epoch * len(stream) + position`; fast where the requested numbers increase.

    Each process has its own iterator. Samples between two requested numbers are skipped with `iter_from(epoch, start)`
    where the dataset has it, else read and discarded.
    """

    def __init__(self, dataset: Any, *, name: str, num_samples: int) -> None:
        self.target, self.classes = read_outputs(dataset, source=name)
        self.seed = 0
        self._dataset = dataset
        self._name = name
        self._num_samples = num_samples
        self._cursor: _Cursor | None = None

    @property
    def code(self) -> Any:
        """The user's code that gives the samples."""
        return type(self._dataset).__iter__

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        return self._num_samples

    def __getitem__(self, number: int) -> Any:
        """Return a sample as the dataset gives it; raises `DataError` where the stream ends before it."""
        epoch, position = divmod(number, self._num_samples)
        cursor = self._cursor = self._reach(epoch, position)
        try:
            while cursor.position < position:
                self._next(cursor)
            return self._next(cursor)
        except StopIteration:
            raise DataError(
                f"data.source={self._name}: in epoch {epoch} the stream ended before position {position}, counted from "
                f"0, but an epoch has {counted(self._num_samples, 'sample')}; correct its len() or "
                "data.samples_per_epoch, and let every iter() begin again"
            ) from None

    def _next(self, cursor: _Cursor) -> Any:
        """Return the sample at the cursor; its random draws depend on its place alone, so all processes agree."""
        seed_generators(self.seed, Purpose.READING, cursor.epoch, cursor.position)
        sample = next(cursor.iterator)
        cursor.position += 1
        return sample

    def describe(self, number: int) -> str:
        """Return the name of a sample for messages."""
        epoch, position = divmod(number, self._num_samples)
        return f"sample {position} of epoch {epoch} of {self._name}"

    def _reach(self, epoch: int, position: int) -> _Cursor:
        """Return an iterator at or before the position: the current one where it can get there, else a new one."""
        can_jump = hasattr(self._dataset, "iter_from")
        cursor, pid = self._cursor, os.getpid()
        # An iterator from before a fork would share open files, and their offsets, with the other process.
        is_usable = cursor is not None and cursor.position <= position and (cursor.pid, cursor.epoch) == (pid, epoch)
        if cursor is not None and is_usable and (cursor.position == position or not can_jump):
            return cursor
        self._cursor = cursor = None  # releases what it holds, such as files, before it is opened again
        seed_generators(self.seed, Purpose.READING, epoch)
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        if can_jump:
            return _Cursor(pid, epoch, position, iter(self._dataset.iter_from(epoch, position)))
        return _Cursor(pid, epoch, 0, iter(self._dataset))


def open_stream(dataset: Any, *, name: str, split: str, num_samples: int | None) -> Stream:
    """Return the stream of a split, with `num_samples` per epoch or its `len()`; raises `DataError` without either."""
    field = "data.samples_per_epoch" if split == "train" else "data.val_samples"
    read_outputs(dataset, source=name)
    length = len(dataset) if hasattr(dataset, "__len__") else None
    if num_samples is None and length is None:
        raise DataError(f"data.source={name}: the {split} split is a stream without len(); set {field} to its length")
    if num_samples is not None and length is not None and num_samples > length:
        raise DataError(f"{field}={num_samples} is more than {length}, the len() of {name}")
    return Stream(dataset, name=name, num_samples=num_samples or length or 0)
