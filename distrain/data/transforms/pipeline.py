"""Turns a sample into the model's input: transforms of one image, then normalisation of a whole batch.

A list of transforms is compiled. The leading ones with draws of their own (`geometric` and `resize` in this folder) run
in threads, some of them on whole batches. From the first transform of torchvision's or the user's on, the rest run
image by image in one thread of a process, with its generators seeded for each sample. An image is the same whichever
way it is read.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from distrain.config import Augment, Transform, TransformList
from distrain.config.user_code import is_reference, load_reference
from distrain.data.loading.sampler import MicroBatch
from distrain.errors import RecipeError
from distrain.global_rng import seed_generators
from distrain.messages import joined, nearest
from distrain.rng import Purpose

if TYPE_CHECKING:
    from distrain.data.transforms.geometric import Drawn, Numbers, Places, Size  # takes a second to import: torchvision
    from distrain.data.transforms.resize import Own

Other = Callable[[Any], Any]  # a transform of torchvision's or the user's


class Transforms:
    """The transforms of a split, compiled: `leading` ones with draws of their own, then `rest`.

    `is_thread_safe`: several threads may apply them at once. `is_batched`: they can be applied to whole batches.
    """

    def __init__(
        self, leading: "Sequence[Drawn]" = (), rest: "Sequence[Own | Other]" = (), *, is_batched: bool = False
    ) -> None:
        self.leading = tuple(leading)
        self.rest = tuple(rest)
        self.is_thread_safe = not self.rest
        self.is_batched = is_batched

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image by itself transformed, as sample 0 of epoch 0 with seed 0 where its transforms draw.

        torchvision's own and the user's draw from the generators as they stand.
        """
        drawn = self.draw(MicroBatch(np.zeros(1, dtype=np.int64)), seed=0)
        return drawn.apply_rest(drawn.apply_leading(image, 0), 0)

    def draw(self, micro_batch: MicroBatch, *, seed: int) -> "DrawnTransforms":
        """Return the transforms with all that the samples of a micro-batch draw for themselves."""
        return DrawnTransforms(self, micro_batch, seed=seed)


class DrawnTransforms:
    """Transforms with what the samples of one micro-batch have drawn; an image is named by its position there."""

    def __init__(self, transforms: Transforms, micro_batch: MicroBatch, *, seed: int) -> None:
        from distrain.data.transforms.resize import Own

        self._transforms = transforms
        self._micro_batch = micro_batch
        self._seed = seed
        self._numbers: list[Numbers | None] = [
            step.draw(micro_batch, seed=seed, place=place) if isinstance(step, Own) else None
            for place, step in enumerate((*transforms.leading, *transforms.rest))
        ]

    def apply_leading(self, image: torch.Tensor, position: int, place: torch.Tensor | None = None) -> torch.Tensor:
        """Return an image after the leading transforms; threads may call it at once.

        What is resampled is written into `place`, an image of the batch, where it is like that; then it is that tensor.
        """
        from distrain.data.transforms.resize import Resampling

        for step, numbers in zip(self._transforms.leading, self._numbers, strict=False):
            row = _row(numbers, position)
            image = step.apply(image, row, place) if isinstance(step, Resampling) else step.apply(image, row)
        return image

    def apply_seeded_rest(self, image: torch.Tensor, position: int) -> torch.Tensor:
        """Return an image after the other transforms, which draw from generators that are seeded for its sample."""
        if not self._transforms.rest:
            return image
        seed_generators(self._seed, Purpose.SAMPLE, *self._micro_batch.place(position))
        return self.apply_rest(image, position)

    def apply_rest(self, image: torch.Tensor, position: int) -> torch.Tensor:
        """Return an image after the other transforms, which draw from the generators as they stand."""
        from distrain.data.transforms.resize import Own

        for step, numbers in zip(self._transforms.rest, self._numbers[len(self._transforms.leading) :], strict=True):
            image = step.apply(image, _row(numbers, position)) if isinstance(step, Own) else step(image)
        return image

    def apply_to_batch(self, images: torch.Tensor) -> torch.Tensor:
        """Return images [n, channels, height, width] on the CPU transformed, where the transforms are `is_batched`."""
        from distrain.data.transforms.geometric import Batched

        for step, numbers in zip(self._transforms.leading, self._numbers, strict=True):
            assert isinstance(step, Batched)
            assert numbers is not None
            images = step.apply_to_batch(images, numbers)
        return images

    def find_places(self, size: "Size") -> "list[Places]":
        """Return the whole numbers by which `apply_by` transforms images of one size, as far as there are any.

        Raises `ValueError` for images that cannot be transformed.
        """
        from distrain.data.transforms.geometric import Batched

        found = []
        for step, numbers in zip(self._transforms.leading, self._numbers, strict=True):
            assert isinstance(step, Batched)
            assert numbers is not None
            places, size = step.find_places(numbers, size)
            found.append(places)
        return found

    def apply_by(self, places: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Return images [n, channels, height, width] transformed where they and the numbers of `find_places` are."""
        from distrain.data.transforms.geometric import Batched

        for step, own in zip(self._transforms.leading, places, strict=True):
            assert isinstance(step, Batched)
            images = step.apply_by(images, own)
        return images


def build_transforms(transforms: TransformList, *, key: str) -> Transforms | None:
    """Compile the transforms of a split; None for an empty list.

    Raises `RecipeError` for a name that torchvision.transforms.v2 does not have and for arguments that it refuses.
    """
    if not transforms:
        return None
    from distrain.data.transforms.geometric import Batched
    from distrain.data.transforms.resize import Own

    steps = [_build(transform, key=key) for transform in transforms]
    leading: list[Drawn] = []
    for step in steps:
        if not isinstance(step, Own):
            break
        leading.append(step)
    return Transforms(leading, steps[len(leading) :], is_batched=all(isinstance(step, Batched) for step in steps))


class Normalize:
    """Turns a batch into the model's input: float32, scaled to [0, 1] from uint8, then (x - mean) / std a channel.

    `memory_format` is that of the input, whatever the images have, which loaders give as it is at hand.
    """

    def __init__(
        self,
        augment: Augment,
        *,
        num_channels: int,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if augment.mean is not None and len(augment.mean) != num_channels:
            raise RecipeError(
                f"augment.mean wants a number for each channel of the images: {num_channels}, not {len(augment.mean)}"
            )
        mean = torch.tensor(augment.mean or (0.0,), dtype=torch.float32, device=device)
        std = torch.tensor(augment.std or (1.0,), dtype=torch.float32, device=device)
        self._mean = mean.view(1, -1, 1, 1)
        self._std = std.view(1, -1, 1, 1)
        self._mean_of_bytes = self._mean * 255
        self._std_of_bytes = self._std * 255
        self._memory_format = memory_format

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images uint8 or float [n, channels, height, width] to float32 of the same shape."""
        if images.dtype == torch.uint8:
            images = images.contiguous(memory_format=self._memory_format)
            return torch.sub(images, self._mean_of_bytes).div_(self._std_of_bytes)  # float32: a byte is exact in it
        return images.to(torch.float32, memory_format=self._memory_format).sub(self._mean).div_(self._std)


def describe_transform(transform: Transform, *, key: str) -> tuple[str, bool]:
    """Return a transform with all its arguments, defaults too, and whether torchvision has it; raises `RecipeError`."""
    from distrain.data.transforms import geometric

    if is_reference(transform.name) or transform.name in geometric.ADDED:
        return f"{transform.name}({', '.join(f'{n}={v}' for n, v in transform.arguments.items())})", False
    return repr(_make(transform, key=key)), True


def _build(transform: Transform, *, key: str) -> "Own | Other":
    from distrain.data.transforms import geometric, resize

    built = _make(transform, key=key)
    is_own = is_reference(transform.name)
    drawn = None if is_own else geometric.from_torchvision(built) or resize.from_torchvision(built)
    step: Own | Other = drawn or built
    return step


def _make(transform: Transform, *, key: str) -> Any:
    """Return the object that a recipe names: torchvision's, one of ours, or the user's own."""
    from torchvision.transforms import v2

    from distrain.data.transforms import geometric

    factory: Any = geometric.ADDED.get(transform.name)
    if is_reference(transform.name):
        factory = load_reference(transform.name, key=key)
    elif factory is None:
        factory = getattr(v2, transform.name, None)
        if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
            raise RecipeError(
                f"{key}: unknown transform {transform.name!r}{nearest(transform.name, _names(), count=1)}"
            )
    try:
        return factory(**{name: _read_argument(name, value) for name, value in transform.arguments.items()})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{key}: {transform.name} refuses {transform.arguments}: {error}") from None


def _names() -> list[str]:
    """Return the names of all transforms that a recipe may name without a module."""
    from torchvision.transforms import v2

    from distrain.data.transforms import geometric

    every = {name: getattr(v2, name) for name in dir(v2)}
    return [
        *geometric.ADDED,
        *(n for n, kind in every.items() if isinstance(kind, type) and issubclass(kind, nn.Module)),
    ]


def _read_argument(name: str, value: Any) -> Any:
    """Return the member of torchvision's enumerations that YAML names in a word, such as `interpolation: bilinear`."""
    from torchvision.transforms import v2

    enumerations: dict[str, list[Any]] = {"interpolation": [*v2.InterpolationMode], "policy": [*v2.AutoAugmentPolicy]}
    if name not in enumerations or not isinstance(value, str):
        return value
    pil_only = {"box", "hamming", "lanczos"}  # and images are tensors here
    members = {member.value: member for member in enumerations[name] if member.value not in pil_only}
    if value not in members:
        raise ValueError(f"unknown {name} {value!r}; use {joined(list(members))}")
    return members[value]


def _row(numbers: "Numbers | None", position: int) -> "Numbers":
    assert numbers is not None
    row: Numbers = numbers[position]
    return row
