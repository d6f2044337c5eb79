"""Makes the data part of a session: sources, readers, the order of the samples, and how a batch is prepared."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from distrain.config import Recipe
from distrain.config.batching import solve_batching
from distrain.config.profile import Profile
from distrain.config.user_code import is_reference
from distrain.data.loading.epoch_order import build_sampler
from distrain.data.loading.loader import BatchReader
from distrain.data.loading.sampler import MicroBatch, TrainSampler
from distrain.data.sources.base import Batch, Source, is_read_in_order
from distrain.data.sources.cached import cache
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.data.transforms.pipeline import Normalize, build_transforms
from distrain.distributed.world import World
from distrain.errors import DataError, RecipeError
from distrain.models.data_dependent_init import NUM_IMAGES
from distrain.training.device.batch_transforms import BatchTransform
from distrain.training.device.precision import MEMORY_FORMATS

NUM_SAMPLE_IMAGES = 8


@dataclass(frozen=True)
class DataSetup:
    """The data of a run, and its first samples, on which everything else is tried."""

    sources: dict[str, Source]  # by split: train and val
    readers: dict[str, BatchReader]
    sampler: TrainSampler
    total_steps: int
    normalize: Normalize
    prepare: BatchTransform
    first: Batch  # training samples, not yet normalized, on the CPU
    first_val: Batch
    input: dict[str, Any]  # of an exported network: `_describe_input`
    sample_images: torch.Tensor  # float32 [n, channels, height, width], the first ones normalized, on the device

    @property
    def train_source(self) -> Source:
        """The training split."""
        return self.sources["train"]

    @property
    def num_classes(self) -> int:
        """How many outputs the network has."""
        return len(self.train_source.classes)

    @property
    def num_channels(self) -> int:
        """The channels of an image."""
        return self.sample_images.shape[1]


def set_up_data(recipe: Recipe, profile: Profile, world: World) -> DataSetup:
    """Open the data and read its first samples.

    All ranks call it together. Raises `DataError` for an empty split or a sample that cannot be read, and
    `RecipeError` for a batch that cannot be cut as the recipe says.
    """
    with world.rank_zero_first():  # rank 0 downloads missing data
        sources = choose_samples(open_sources(recipe.data), recipe.data, seed=recipe.train.seed)
    _check_not_empty(sources)
    sampler = build_train_sampler(recipe, recipe.train.micro_batch_size, sources["train"], world=world)
    if is_reference(recipe.data.sampling) and len(set(world.gather(sampler.digest()))) > 1:
        raise RecipeError(
            f"data.sampling={recipe.data.sampling} gives each process other weights; compute "
            "them from its arguments alone"
        )
    total_steps = min(recipe.train.epochs * sampler.steps_per_epoch, recipe.train.max_steps or 2**63)
    readers = _build_readers(recipe, profile, sources, world=world, epochs=total_steps / sampler.steps_per_epoch)
    first = _first_batch(readers["train"], sampler.first_micro_batch().head(NUM_SAMPLE_IMAGES))
    first_val = _first_batch(readers["val"], MicroBatch(np.arange(min(NUM_SAMPLE_IMAGES, len(sources["val"])))))
    normalize = Normalize(
        recipe.augment,
        num_channels=first[0].shape[1],
        device=world.device,
        memory_format=MEMORY_FORMATS[recipe.compute.memory_format],
    )
    num_classes = len(sources["train"].classes)
    return DataSetup(
        sources=sources,
        readers=readers,
        sampler=sampler,
        total_steps=total_steps,
        normalize=normalize,
        prepare=BatchTransform(recipe, normalize, steps_per_epoch=sampler.steps_per_epoch, num_classes=num_classes),
        first=first,
        first_val=first_val,
        input=_describe_input(sources["val"], first_val[0][0]),
        sample_images=normalize(first[0].to(world.device)),
    )


def build_train_sampler(
    recipe: Recipe, micro_batch_size: int | Literal["auto"] | None, source: Source, *, world: World
) -> TrainSampler:
    """Return which samples this rank trains on in each step."""
    batching = solve_batching(recipe.data.batch_size, micro_batch_size, world.size, is_exact=recipe.train.exact)
    return TrainSampler(
        num_samples=len(source),
        sampler=build_sampler(recipe.data, source, seed=recipe.train.seed),
        batching=batching,
        drop_last=recipe.data.drop_last,
        rank=world.rank,
    )


def _check_not_empty(sources: dict[str, Source]) -> None:
    for split, source in sources.items():
        if len(source) == 0:
            raise DataError(f"the {split} split of the data is empty")


def _build_readers(
    recipe: Recipe, profile: Profile, sources: dict[str, Source], *, world: World, epochs: float
) -> dict[str, BatchReader]:
    num_processes = max(1, len(os.sched_getaffinity(0)) // profile.processes)
    readers = {}
    for split, key, listed in (("train", "train", recipe.augment.train), ("val", "eval", recipe.augment.eval)):
        transforms = build_transforms(listed, key=f"augment.{key}", has_masks=sources[split].target == "mask")
        source = cache(
            sources[split],
            recipe.data.cache,
            name=split,
            epochs=epochs,
            num_processes=num_processes,
            seed=recipe.train.seed,
        )
        is_read_here = recipe.data.loader == "auto"  # loader processes cannot use data on a GPU
        device = world.device if recipe.data.cache != "never" and is_read_here else None
        readers[split] = BatchReader(source, transforms, seed=recipe.train.seed, device=device)
    return readers


def _first_batch(reader: BatchReader, samples: MicroBatch) -> Batch:
    """Return these samples, their images not yet normalised; raises the error of a bad one."""
    batch = reader.read(samples)
    if isinstance(batch, DataError):
        raise batch
    return batch


def _describe_input(source: Source, image: torch.Tensor) -> dict[str, Any]:
    """Return what a bundle needs to know of its input; `image` is the first of `source`, not yet normalized.

    `image_channels` are those before the transforms; `shape` is [channels, height, width].
    """
    stored = image if is_read_in_order(source) else source.read(0)[0]
    return {"image_channels": len(stored), "dtype": str(image.dtype), "shape": list(image.shape)}


def first_images(recipe: Recipe, source: Source) -> torch.Tensor:
    """Return the first training samples' images as the network gets them in evaluation, on the CPU."""
    transforms = build_transforms(recipe.augment.eval, key="augment.eval", has_masks=source.target == "mask")
    reader = BatchReader(source, transforms, seed=recipe.train.seed)
    batch = reader.read(MicroBatch(np.arange(min(NUM_IMAGES, len(source)), dtype=np.int64)))
    if isinstance(batch, DataError):
        raise batch
    return Normalize(recipe.augment, num_channels=batch[0].shape[1], device=torch.device("cpu"))(batch[0])
