"""Owns how a sample becomes the model's input: transforms of one image, then normalisation of a whole batch."""

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from distrain.errors import RecipeError
from distrain.recipe import Augment, Transform, TransformList
from distrain.references import is_reference, load_reference
from distrain.seeds import Purpose, derive_seed


def build_transforms(transforms: TransformList, *, key: str) -> nn.Module | None:
    """Build the transforms of a split, or None for an empty list, which lets images be gathered in whole batches.

    Raises `RecipeError` for a name that torchvision.transforms.v2 does not have and for arguments that it refuses.
    """
    if not transforms:
        return None
    from torchvision.transforms import v2  # takes a second to import: only where it is used

    pipeline: nn.Module = v2.Compose([_build(transform, key=key) for transform in transforms])
    return pipeline


def seed_sample(seed: int, epoch: int, index: int, copy: int = 0) -> None:
    """Seed all generators that a transform may draw from, as a function of (seed, epoch, sample, copy) alone."""
    place = (epoch, index, copy) if copy else (epoch, index)
    value = derive_seed(seed, Purpose.SAMPLE, *place)
    torch.default_generator.manual_seed(value)
    np.random.seed(value & 0xFFFF_FFFF)
    random.seed(value)


class Normalize:
    """Turns a batch into the model's input: float32, scaled to [0, 1] from uint8, then (x - mean) / std a channel."""

    def __init__(self, augment: Augment, *, num_channels: int, device: torch.device) -> None:
        if augment.mean is not None and len(augment.mean) != num_channels:
            raise RecipeError(
                f"augment.mean has {len(augment.mean)} numbers and the images have {num_channels} channels"
            )
        mean = torch.tensor(augment.mean or (0.0,), dtype=torch.float32, device=device)
        std = torch.tensor(augment.std or (1.0,), dtype=torch.float32, device=device)
        self._mean = mean.view(1, -1, 1, 1)
        self._std = std.view(1, -1, 1, 1)
        self._mean_of_bytes = self._mean * 255
        self._std_of_bytes = self._std * 255

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images uint8 or float [n, channels, height, width] to float32 of the same shape."""
        if images.dtype == torch.uint8:
            return torch.sub(images, self._mean_of_bytes).div_(self._std_of_bytes)  # float32: a byte is exact in it
        return images.float().sub(self._mean).div_(self._std)


def _build(transform: Transform, *, key: str) -> nn.Module:
    from torchvision.transforms import v2

    if is_reference(transform.name):
        factory = load_reference(transform.name, key=key)
    else:
        factory = getattr(v2, transform.name, None)
        if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
            raise RecipeError(f"{key}: torchvision.transforms.v2 has no transform {transform.name!r}")
    try:
        built: nn.Module = factory(**{name: _read_argument(name, value) for name, value in transform.arguments.items()})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{key}: {transform.name} refuses {transform.arguments}: {error}") from None
    return built


def _read_argument(name: str, value: Any) -> Any:
    """Return the member of torchvision's enumerations that YAML names in a word, such as `interpolation: bilinear`."""
    from torchvision.transforms import v2

    enumerations: dict[str, list[Any]] = {"interpolation": [*v2.InterpolationMode], "policy": [*v2.AutoAugmentPolicy]}
    if name not in enumerations or not isinstance(value, str):
        return value
    pil_only = {"box", "hamming", "lanczos"}  # and images are tensors here
    members = {member.value: member for member in enumerations[name] if member.value not in pil_only}
    if value not in members:
        raise ValueError(f"there is no {name} {value!r}; take {', '.join(members)}")
    return members[value]
