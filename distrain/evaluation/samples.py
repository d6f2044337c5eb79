"""Opens single samples before any transform."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distrain.config import Recipe, read_recipe
from distrain.data.sources.base import Source
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.data.transforms.visible import to_visible
from distrain.errors import DataError
from distrain.runs.task import Samples


def open_samples(recipe: Recipe, samples: Samples) -> tuple[Source, Samples]:
    """Return the samples to evaluate, and their split; `given` are the validation samples, or all without a split."""
    sources = open_sources(recipe.data)
    has_splits = "val" in sources or recipe.data.val_fraction is not None
    if samples != "val" and not has_splits:
        return sources["train"], "all"
    if samples == "given":
        samples = "val"
    return choose_samples(sources, recipe.data, seed=recipe.train.seed)[samples], samples


def read_images(recipe: Path, samples: Samples, indices: list[int]) -> list[NDArray[Any] | None]:
    """Return samples of a recipe's data as uint8 [height, width, 3]; None for one that cannot be read."""
    source, _ = open_samples(read_recipe(recipe), samples)
    images: list[NDArray[Any] | None] = []
    for index in indices:
        try:
            images.append(_to_rgb(source.read(index)[0]))
        except DataError:
            images.append(None)
    return images


def _to_rgb(image: torch.Tensor) -> NDArray[Any]:
    """Return an image [channels, height, width] as RGB."""
    return np.ascontiguousarray(to_visible(image.unsqueeze(0))[0].expand(3, -1, -1).permute(1, 2, 0).numpy())
