"""Defines how a global batch is cut into micro-batches and how these are dealt to the processes.

The cut depends on the recipe alone: what stands in micro-batch j of a step is the same at every world size. Only the
deal depends on the world size, and it gives every process a run of neighbours.
"""

from dataclasses import dataclass
from typing import Literal

from distrain.errors import DataError, RecipeError
from distrain.messages import counted


@dataclass(frozen=True)
class Batching:
    """The solved equation global_batch_size = micro_batch_size x accumulation x world_size.

    In exact mode the processes may have unequal work: accumulation is then the most micro-batches that one of them has.
    """

    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    world_size: int

    def __str__(self) -> str:
        if self.global_batch_size != self.micro_batch_size * self.accumulation * self.world_size:
            pieces = self.global_batch_size // self.micro_batch_size
            return (
                f"global batch {self.global_batch_size} = {pieces} micro-batches of {self.micro_batch_size} "
                f"dealt to {self.world_size} processes, {self.accumulation} at most to each"
            )
        return (
            f"global batch {self.global_batch_size} = micro-batch {self.micro_batch_size} "
            f"x accumulation {self.accumulation} x {counted(self.world_size, 'process', 'processes')}"
        )

    def cut(self, num_samples: int) -> list[tuple[int, int]]:
        """Return the [start, stop) ranges of the micro-batches of a window of `num_samples`.

        A full window gives ranges of `micro_batch_size`. The smaller last window of an epoch gives as few ranges as
        hold it, of sizes that differ by one at most, so that none is left with a sample or two for BatchNorm.
        """
        pieces = -(-num_samples // self.micro_batch_size)
        return [(num_samples * j // pieces, num_samples * (j + 1) // pieces) for j in range(pieces)]

    def deal(self, num_micro_batches: int, rank: int) -> range:
        """Return which of a window's micro-batches this rank takes; rank 0 always has one, the last may have none."""
        return range(
            -(-num_micro_batches * rank // self.world_size), -(-num_micro_batches * (rank + 1) // self.world_size)
        )


def solve_batching(
    global_batch_size: int, micro_batch_size: int | Literal["auto"] | None, world_size: int, *, is_exact: bool = False
) -> Batching:
    """Solve for the accumulation; without a micro-batch size one micro-batch a process is taken.

    So it is for auto, too: that is the largest size there could be, of which training finds the one that memory holds.

    Exact mode takes any number of processes up to that of the micro-batches. Raises `RecipeError` where the global
    batch does not divide, naming sizes that do.
    """
    if micro_batch_size == "auto":
        micro_batch_size = None
    if is_exact:
        return _solve_exact(global_batch_size, micro_batch_size, world_size)
    if micro_batch_size is None:
        if global_batch_size % world_size:
            raise RecipeError(
                f"data.batch_size={global_batch_size} does not divide over {world_size} processes; "
                f"take {_divisors_text(global_batch_size)} processes, or "
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
    """Return the optimizer steps of an epoch; raises `DataError` where `drop_last` leaves none."""
    steps = num_samples // batch_size if drop_last else -(-num_samples // batch_size)
    if steps == 0:
        raise DataError(
            f"data.drop_last leaves nothing: the data has {num_samples} training samples and "
            f"data.batch_size={batch_size}; lower the batch, or --set data.drop_last=false"
        )
    return steps


def _solve_exact(global_batch_size: int, micro_batch_size: int | None, world_size: int) -> Batching:
    if micro_batch_size is None:
        raise RecipeError(
            "train.exact sums the micro-batches in a fixed order, so the recipe gives their size; for example "
            f"--set train.micro_batch_size={_largest_divisor(global_batch_size, at_most=global_batch_size // 4)}"
        )
    if global_batch_size % micro_batch_size:
        raise RecipeError(
            f"data.batch_size={global_batch_size} does not divide into micro-batches of {micro_batch_size}; "
            f"--set data.batch_size={_nearest_multiple(global_batch_size, micro_batch_size)}, "
            f"or another train.micro_batch_size"
        )
    pieces = global_batch_size // micro_batch_size
    if world_size > pieces:
        raise RecipeError(
            f"train.exact deals {counted(pieces, 'micro-batch', 'micro-batches')} of {micro_batch_size} to "
            f"{world_size} processes; take 1 to {pieces} processes, or a smaller train.micro_batch_size"
        )
    return Batching(global_batch_size, micro_batch_size, -(-pieces // world_size), world_size)


def _largest_divisor(value: int, *, at_most: int) -> int:
    return next(d for d in range(max(1, at_most), 0, -1) if value % d == 0)


def _nearest_multiple(value: int, unit: int) -> int:
    return max(1, round(value / unit)) * unit


def _divisors_text(value: int) -> str:
    divisors = [str(d) for d in range(1, min(value, 64) + 1) if value % d == 0]
    return divisors[0] if len(divisors) == 1 else f"{', '.join(divisors[:-1])} or {divisors[-1]}"
