"""Finds the forward passes in which a sample is alone, and the batch sizes that avoid them, before any is made.

BatchNorm refuses to normalise a single value per channel, and many a network squeezes away a batch of one.
"""

from dataclasses import dataclass

from distrain.config import Recipe
from distrain.config.batching import solve_batching
from distrain.data.loading.sampler import TrainSampler
from distrain.errors import RecipeError
from distrain.messages import counted

_FARTHEST = 64  # other batch sizes that are tried on each side of the recipe's


@dataclass(frozen=True)
class SingleSample:
    """Where a sample is alone in a forward pass, and what avoids it, as text."""

    where: str
    remedy: str


def find_in_training(recipe: Recipe, sampler: TrainSampler, *, num_devices: int) -> SingleSample | None:
    """Return where training passes a single sample through the network on any rank, the last batch of an epoch first.

    With `num_devices` in one process each micro-batch is split over them. None where no sample is ever alone.
    """
    batching, last = sampler.batching, sampler.global_batches[-1]
    has_full = sampler.num_samples >= batching.global_batch_size
    is_always = has_full and min(_parts([batching.micro_batch_size], num_devices)) == 1
    if not is_always and min(_parts(last.sizes, num_devices)) > 1:
        return None
    if is_always and recipe.train.micro_batch_size == 1:
        return SingleSample("train.micro_batch_size=1 leaves one to each", "raise train.micro_batch_size")
    size = _find_batch_size(recipe, sampler, num_devices=num_devices)
    remedies = [] if size is None else [f"--set data.batch_size={size}"]
    if is_always:
        where = f"data.batch_size={batching.global_batch_size}"
        if (devices := batching.world_size * num_devices) > 1:
            where += f" on {devices} devices"
        return SingleSample(f"{where} leaves one to each", _join(remedies, otherwise="raise data.batch_size"))
    if has_full:
        remedies.insert(0, "--set data.drop_last=true")
    share = f"{last.num_samples:,} of {counted(sampler.num_samples, 'training sample')}"
    return SingleSample(
        f"the last batch of each epoch ({share}) leaves one to a forward pass",
        _join(remedies, otherwise="add training samples"),
    )


def find_in_evaluation(recipe: Recipe, *, num_samples: int) -> SingleSample | None:
    """Return where the evaluation of `num_samples` passes a single one through the network; None where it does not."""
    size = recipe.eval.batch_size
    if size > 1 and num_samples % size != 1:
        return None
    better = next((other for other in range(max(2, size - 1), 1, -1) if num_samples % other != 1), None)
    remedy = "add validation samples" if better is None else f"--set eval.batch_size={better}"
    return SingleSample(f"the last batch of {counted(num_samples, 'validation sample')} is one", remedy)


def _join(remedies: list[str], *, otherwise: str) -> str:
    return " or ".join(remedies) or otherwise


def _parts(sizes: list[int], num_devices: int) -> list[int]:
    """Return the samples of each forward pass of micro-batches that are split as `torch.chunk` does."""
    if num_devices == 1:
        return sizes
    smallest = []
    for size in sizes:
        chunk = -(-size // num_devices)
        smallest.append(size - (-(-size // chunk) - 1) * chunk)
    return smallest


def _find_batch_size(recipe: Recipe, sampler: TrainSampler, *, num_devices: int) -> int | None:
    """Return the nearest `data.batch_size` with which no sample is alone; None where there is none near."""
    now, wanted = sampler.batching, recipe.train.micro_batch_size
    micro_batch_size = now.micro_batch_size if wanted == "auto" else wanted
    for distance in range(1, _FARTHEST + 1):
        for size in (now.global_batch_size + distance, now.global_batch_size - distance):
            if size < 2:
                continue
            try:
                batching = solve_batching(size, micro_batch_size, now.world_size, is_exact=recipe.train.exact)
            except RecipeError:
                continue
            sizes = [batching.micro_batch_size] if sampler.num_samples >= size else []
            tail = sampler.num_samples % size
            if tail and not (recipe.data.drop_last and sizes):
                sizes += [stop - start for start, stop in batching.split(tail)]
            if min(_parts(sizes, num_devices)) > 1:
                return size
    return None
