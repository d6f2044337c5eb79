"""Finds the largest micro-batch that fits into memory, once per run, for `train.micro_batch_size: auto`."""

import logging
import math
from collections.abc import Callable

import torch
from torch import nn

from distrain.config import Recipe
from distrain.data.sources.base import Batch
from distrain.distributed.recompute import turn_on
from distrain.distributed.world import World
from distrain.errors import LaunchError, ModelError, RecipeError
from distrain.messages import MEBIBYTE
from distrain.models.copies import copy_network
from distrain.models.registry import head_paths
from distrain.runs.directory import RunDirectory
from distrain.system.memory import available_memory_bytes
from distrain.training.device.allocator import forget_peak, release_unused, resident_bytes
from distrain.training.device.batch_transforms import BatchTransform
from distrain.training.device.precision import Precision, set_tf32, to_device
from distrain.training.optim.averages import build_average
from distrain.training.optim.clipping import build_clipping
from distrain.training.optim.optimizer import build_optimizer
from distrain.training.tasks.probe import Refusing
from distrain.training.tasks.protocol import LOSS, TaskLosses

MEMORY_FRACTION = 0.9  # of the memory that is left: evaluation, communication and fragmentation need some, too
MIN_LEFT_BYTES = 2**30  # of a GPU's: kernels that are loaded at their first use, and NCCL's buffers, come later
# How running out of memory is reported apart from torch's own exceptions: by the CPU's allocator, cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
# What cuDNN reports where no algorithm has memory for its workspace; also for what it cannot compute at any size.
_NO_ALGORITHM = "unable to find an engine"

log = logging.getLogger(__name__)

Trial = Callable[[int], int | None]  # from a micro-batch size to its peak memory in bytes; None where it does not fit


def resolve_micro_batch_size(run: RunDirectory, world: World, *, largest: int, find: Callable[[], int]) -> int:
    """Return this run's size: the one that it has found before, or now the least that any rank's `find` gives.

    `largest` is a rank's share of a step, which the size must divide. All ranks call it together. Raises `RecipeError`
    where nothing fits.
    """
    kept = int(world.all_reduce(torch.tensor((run.read_micro_batch_size() or 0) if world.is_rank_zero else 0)))
    if kept and largest % kept == 0:
        return kept
    found = world.min_over_ranks(find())
    if found == 0:
        raise RecipeError(
            "train.micro_batch_size=auto: a pass of the fewest samples does not fit into the memory that is left; "
            "end other programs, or use a smaller network or smaller images"
        )
    if world.is_rank_zero:
        try:
            run.write_micro_batch_size(found)
        except OSError as error:
            log.warning(
                "%s could not be written: %s; a later attempt may find another", run.micro_batch, error.strerror
            )
    return found


def find_micro_batch_size(trial: Trial, *, largest: int, limit_bytes: int, is_cautious: bool) -> int:
    """Return the largest divisor of `largest` whose trial stays within the limit; 0 where none does.

    Sizes grow, by no more than twice at once. `is_cautious`: a size is not even tried whose memory would by all signs
    exceed the limit, since nothing catches what follows on the CPU.
    """
    least = min(2, largest)  # BatchNorm may refuse a single sample
    small = [size for size in range(1, math.isqrt(largest) + 1) if largest % size == 0]
    divisors = {size for divisor in small for size in (divisor, largest // divisor) if size >= least}
    doublings = {1 << exponent for exponent in range(1, largest.bit_length()) if 1 << exponent < largest}
    found = 0
    peaks: list[tuple[int, int]] = []
    for size in sorted(divisors | doublings):
        if is_cautious and _expected_bytes(peaks, size) > limit_bytes:
            break
        peak = trial(size)
        if peak is None or peak > limit_bytes:
            break
        peaks.append((size, peak))
        found = size if size in divisors else found
    if peaks:
        log.info(
            "train.micro_batch_size=auto: micro-batches of %d take %.0f MiB at most, and %.0f MiB may be used",
            *(peaks[-1][0], peaks[-1][1] / MEBIBYTE, limit_bytes / MEBIBYTE),
        )
    return found


def memory_limit_bytes(world: World, *, processes: int) -> int:
    """Return the bytes that this rank may use, of `processes` on this node; all ranks call it together."""
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
        free: int | None = torch.cuda.mem_get_info(world.device)[0]
    else:
        available = available_memory_bytes()
        free = None if available is None else available // processes
    world.barrier()  # no rank allocates memory before all have looked
    if free is None:
        raise LaunchError("train.micro_batch_size=auto cannot see how much memory is left here; give a number")
    return usable_bytes(free, world.device)


def usable_bytes(free: int, device: torch.device) -> int:
    """Return how much of `free` bytes a run may use; on a small GPU the rest is more than a tenth."""
    return min(int(free * MEMORY_FRACTION), max(0, free - MIN_LEFT_BYTES if device.type == "cuda" else free))


def try_micro_batch_sizes(
    recipe: Recipe,
    model: nn.Module,
    batch: Batch,
    *,
    largest: int,
    limit_bytes: int,
    prepare: BatchTransform,
    losses: TaskLosses,
    world: World,
) -> int:
    """Return what `find_micro_batch_size` finds by training a copy of `model` on samples of `batch`.

    Memory, weights, statistics and random generators are as before afterwards.
    """
    with torch.random.fork_rng(devices=list(world.gpus)):
        passes = _Passes(recipe, model, batch, prepare=prepare, losses=losses, world=world)
        is_cautious = world.device.type == "cpu"
        found = find_micro_batch_size(
            passes.peak_bytes, largest=largest, limit_bytes=limit_bytes, is_cautious=is_cautious
        )
        del passes
    release_unused(world.device)
    return found


class _Passes:
    """A copy of the network that is trained for its use of memory, with all that a step holds in it."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        batch: Batch,
        *,
        prepare: BatchTransform,
        losses: TaskLosses,
        world: World,
    ) -> None:
        self._device = world.device
        _take_a_first_step()
        forget_peak(self._device)
        self._before = _now_bytes(self._device)
        set_tf32(recipe, self._device)
        self._model = to_device(_copy(model, recipe), recipe, self._device).train()
        if recipe.compute.recompute:
            turn_on(recipe, self._model)
        heads = head_paths(recipe.model, self._model)
        self._optimizer = build_optimizer(recipe.optimizer, self._model, heads=heads)
        self._average = build_average(recipe, self._model, self._optimizer, steps_per_epoch=1)
        self._precision = Precision(recipe.precision, self._device)
        self._clip = build_clipping(recipe.train, self._model, heads=heads)
        self._refusing = Refusing(self._model, name=recipe.model.name)
        self._batch, self._prepare, self._losses = batch, prepare, losses
        self._has_passed = False  # some size has

    def peak_bytes(self, size: int) -> int | None:
        """Return the peak memory of two steps on `size` samples in bytes, None where it does not fit."""
        forget_peak(self._device)
        try:
            for _ in range(2):  # in the second one the optimizer's state is there during the passes
                self._step(size)
        except (torch.OutOfMemoryError, MemoryError):
            return None
        except RuntimeError as error:
            is_out_of_memory = any(words in str(error) for words in _OUT_OF_MEMORY)
            if is_out_of_memory or (self._has_passed and _NO_ALGORITHM in str(error)):
                return None
            raise
        self._has_passed = True
        return max(0, _peak_bytes(self._device) - self._before)

    def _step(self, size: int) -> None:
        chosen = torch.arange(size) % len(self._batch[1])
        images, targets = (part[chosen].to(self._device) for part in self._batch)
        prepared = self._prepare(images, targets, step=self._prepare.largest_step, index=0)
        with self._precision.autocast():
            loss = self._losses(self._refusing, prepared)[LOSS]
        self._precision.backward(loss)
        self._precision.step(self._optimizer, list(self._model.parameters()), clip=self._clip)
        self._model.zero_grad()
        if self._average is not None:
            self._average.update(0)


def _copy(model: nn.Module, recipe: Recipe) -> nn.Module:
    try:
        return copy_network(model, name=recipe.model.name)
    except ModelError as error:
        raise ModelError(f"train.micro_batch_size=auto trains a copy of the network; {error}; give a number") from error


def _take_a_first_step() -> None:
    """Have torch load what it loads at the first step of any optimizer, a hundred MiB that no other step needs."""
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _expected_bytes(peaks: list[tuple[int, int]], size: int) -> float:
    """Continue the straight line through the last two peaks; with less to go by, nothing is expected."""
    if len(peaks) < 2:
        return 0.0
    (size_0, peak_0), (size_1, peak_1) = peaks[-2:]
    return peak_1 + max(0.0, (peak_1 - peak_0) / (size_1 - size_0)) * (size - size_1)


def _now_bytes(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else resident_bytes("VmRSS")


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else resident_bytes("VmHWM")
