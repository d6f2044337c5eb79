"""Owns the look at single samples, as they are before any transform."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distrain.data.sources import choose_samples, open_sources
from distrain.errors import DataError
from distrain.recipe import read_recipe


def read_images(recipe: Path, split: str, indices: list[int]) -> list[NDArray[Any] | None]:
    """Return samples of a recipe's split as uint8 [height, width, 3]; None for one that cannot be read."""
    config = read_recipe(recipe)
    source = choose_samples(open_sources(config.data), config.data, seed=config.train.seed)[split]
    images: list[NDArray[Any] | None] = []
    for index in indices:
        try:
            images.append(_as_picture(source.read(index)[0]))
        except DataError:
            images.append(None)
    return images


def _as_picture(image: torch.Tensor) -> NDArray[Any]:
    """Return [channels, height, width] as a picture: floats are stretched from their least to their greatest value."""
    if image.dtype != torch.uint8:
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low).clamp(min=1e-9) * 255).round().to(torch.uint8)
    if image.shape[0] not in {1, 3}:
        image = image[:1]
    return np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
