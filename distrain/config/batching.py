"""Defines how a global batch is split into micro-batches and how these are assigned to the processes.

The split depends on the recipe alone: micro-batch j of a step holds the same samples at every world size. Only the
assignment depends on the world size; it gives each process neighbouring micro-batches.
"""

from dataclasses import dataclass
from typing import Literal

from distrain.errors import DataError, RecipeError
from distrain.messages import counted, joined


@dataclass(frozen=True)
class Batching:
    """The solved equation global_batch_size = micro_batch_size x accumulation x world_size.

    In exact mode the processes may have unequal work: accumulation is then the largest number of micro-batches of a
    process.
    """

    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    world_size: int

    def __str__(self) -> str:
        if self.global_batch_size != self.micro_batch_size * self.accumulation * self.world_size:
            num_micro_batches = self.global_batch_size // self.micro_batch_size
            return (
                f"global batch {self.global_batch_size} = {num_micro_batches} micro-batches of {self.micro_batch_size} "
                f"over {self.world_size} processes, at most {self.accumulation} each"
            )
        return (
            f"global batch {self.global_batch_size} = micro-batch {self.micro_batch_size} "
            f"x accumulation {self.accumulation} x {counted(self.world_size, 'process', 'processes')}"
        )

    def split(self, num_samples: int) -> list[tuple[int, int]]:
        """Return the [start, stop) ranges of the micro-batches of a global batch of `num_samples`.

        A full batch gives ranges of `micro_batch_size`. The smaller last batch of an epoch gives as few ranges as
        possible, whose sizes differ by at most one, so that BatchNorm never sees a micro-batch of one or two samples.
        """
        count = -(-num_samples // self.micro_batch_size)
        return [(num_samples * j // count, num_samples * (j + 1) // count) for j in range(count)]

    def assign(self, num_micro_batches: int, rank: int) -> range:
        """Return the indices of the micro-batches of this rank: at least one on rank 0, maybe none on the last."""
        return range(
            -(-num_micro_batches * rank // self.world_size), -(-num_micro_batches * (rank + 1) // self.world_size)
        )


def solve_batching(
    global_batch_size: int, micro_batch_size: int | Literal["auto"] | None, world_size: int, *, is_exact: bool = False
) -> Batching:
    """Solve for the accumulation; without a micro-batch size, each process gets one micro-batch.

    The same holds for auto: that is the largest possible size, and training then finds the largest that fits in memory.

    Exact mode allows any number of processes up to the number of micro-batches. Raises `RecipeError` where the global
    batch is not divisible; the message names sizes that are.
    """
    if micro_batch_size == "auto":
        micro_batch_size = None
    if is_exact:
        return _solve_exact(global_batch_size, micro_batch_size, world_size)
    if micro_batch_size is None:
        if global_batch_size % world_size:
            raise RecipeError(
                f"data.batch_size={global_batch_size} does not divide over {world_size} processes; "
                f"use {_divisors_text(global_batch_size)}, or "
                f"--set data.batch_size={_nearest_multiple(global_batch_size, world_size)}"
            )
        return Batching(global_batch_size, global_batch_size // world_size, 1, world_size)
    if global_batch_size % (micro_batch_size * world_size):
        raise RecipeError(
            f"data.batch_size={global_batch_size} does not divide into micro-batches of {micro_batch_size} over "
            f"{counted(world_size, 'process', 'processes')}; --set "
            f"data.batch_size={_nearest_multiple(global_batch_size, micro_batch_size * world_size)}, "
            f"or another train.micro_batch_size"
        )
    accumulation = global_batch_size // (micro_batch_size * world_size)
    return Batching(global_batch_size, micro_batch_size, accumulation, world_size)


def count_steps_per_epoch(num_samples: int, batch_size: int, *, drop_last: bool) -> int:
    """Return the number of optimizer steps in an epoch; raises `DataError` where `drop_last` leaves none."""
    steps = num_samples // batch_size if drop_last else -(-num_samples // batch_size)
    if steps == 0:
        raise DataError(
            f"data.drop_last leaves nothing: the data has {counted(num_samples, 'training sample')} and "
            f"data.batch_size={batch_size}; lower the batch size, or --set data.drop_last=false"
        )
    return steps


def _solve_exact(global_batch_size: int, micro_batch_size: int | None, world_size: int) -> Batching:
    if micro_batch_size is None:
        raise RecipeError(
            "train.exact sums the micro-batches in a fixed order, so the recipe must give their size; for example "
            f"--set train.micro_batch_size={_largest_divisor(global_batch_size, at_most=global_batch_size // 4)}"
        )
    if global_batch_size % micro_batch_size:
        raise RecipeError(
            f"data.batch_size={global_batch_size} does not divide into micro-batches of {micro_batch_size}; "
            f"--set data.batch_size={_nearest_multiple(global_batch_size, micro_batch_size)}, "
            f"or another train.micro_batch_size"
        )
    num_micro_batches = global_batch_size // micro_batch_size
    if world_size > num_micro_batches:
        raise RecipeError(
            f"train.exact has {counted(num_micro_batches, 'micro-batch', 'micro-batches')} of {micro_batch_size} for "
            f"{world_size} processes; use {_up_to(num_micro_batches)}, or a smaller train.micro_batch_size"
        )
    return Batching(global_batch_size, micro_batch_size, -(-num_micro_batches // world_size), world_size)


def _up_to(processes: int) -> str:
    return "1 process" if processes == 1 else f"1 to {processes} processes"


def _largest_divisor(value: int, *, at_most: int) -> int:
    return next(d for d in range(max(1, at_most), 0, -1) if value % d == 0)


def _nearest_multiple(value: int, unit: int) -> int:
    return max(1, round(value / unit)) * unit


def _divisors_text(value: int) -> str:
    divisors = [str(d) for d in range(1, min(value, 64) + 1) if value % d == 0]
    return f"{joined(divisors)} {'process' if len(divisors) == 1 else 'processes'}"
