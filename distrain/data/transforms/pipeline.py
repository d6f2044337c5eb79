"""Turns a sample into the model's input: transforms of one image, then normalisation of a whole batch.

A list of transforms is compiled. The leading transforms of `geometric` and `resize` in this folder, whose draws are
seeded per sample, can run in threads, and some of them on whole batches. From the first other transform on, of
torchvision or the user, the rest run image by image in one thread of a process, with the global generators seeded for
each sample. The resulting image is the same in every case.
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
from distrain.system.exits import place_of, place_of_code, user_frame

if TYPE_CHECKING:
    from distrain.data.transforms.geometric import (  # takes a second to import: torchvision
        Draws,
        Parameters,
        Seeded,
        Size,
    )
    from distrain.data.transforms.resize import AnySeeded

Unseeded = Callable[[Any], Any]  # a transform of torchvision or the user


class Transforms:
    """The compiled transforms of a split: `leading` seeded ones, then the `rest`.

    `is_thread_safe`: several threads may apply them at once. `is_batched`: they can be applied to whole batches. Those
    of images with masks are all torchvision's and the user's, which are called with both.
    """

    def __init__(
        self, leading: "Sequence[Seeded]" = (), rest: "Sequence[AnySeeded | Unseeded]" = (), *, is_batched: bool = False
    ) -> None:
        self.leading = tuple(leading)
        self.rest = tuple(rest)
        self.is_thread_safe = not self.rest
        self.is_batched = is_batched

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return a single image transformed, with the draws of sample 0 of epoch 0 and seed 0.

        Transforms of torchvision and the user draw from the global generators in their current state.
        """
        drawn = self.draw(MicroBatch(np.zeros(1, dtype=np.int64)), seed=0)
        return drawn.apply_rest(drawn.apply_leading(image, 0), 0)

    def draw(self, micro_batch: MicroBatch, *, seed: int) -> "DrawnTransforms":
        """Return the transforms with the draws of all samples of a micro-batch."""
        return DrawnTransforms(self, micro_batch, seed=seed)


class DrawnTransforms:
    """Transforms with the draws of one micro-batch; an image is identified by its position there."""

    def __init__(self, transforms: Transforms, micro_batch: MicroBatch, *, seed: int) -> None:
        from distrain.data.transforms.resize import AnySeeded

        self._transforms = transforms
        self._micro_batch = micro_batch
        self._seed = seed
        self._draws: list[Draws | None] = [
            step.draw(micro_batch, seed=seed, index=index) if isinstance(step, AnySeeded) else None
            for index, step in enumerate((*transforms.leading, *transforms.rest))
        ]

    def apply_leading(self, image: torch.Tensor, position: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return an image after the leading transforms; several threads may call this at once.

        A resized image is written to `out`, a row of the batch, where shape and dtype match; then `out` is returned.
        """
        from distrain.data.transforms.resize import Resampling

        for step, draws in zip(self._transforms.leading, self._draws, strict=False):
            row = _row(draws, position)
            image = step.apply(image, row, out) if isinstance(step, Resampling) else step.apply(image, row)
        return image

    def apply_seeded_rest(self, image: torch.Tensor, position: int) -> torch.Tensor:
        """Return an image after the other transforms, with the global generators seeded for its sample."""
        if not self._transforms.rest:
            return image
        seed_generators(self._seed, Purpose.SAMPLE, *self._micro_batch.rng_key(position))
        return self.apply_rest(image, position)

    def apply_rest(self, image: torch.Tensor, position: int) -> torch.Tensor:
        """Return an image after the other transforms, with the global generators in their current state."""
        from distrain.data.transforms.resize import AnySeeded

        steps = self._transforms.rest
        for step, draws in zip(steps, self._draws[len(self._transforms.leading) :], strict=True):
            image = step.apply(_checked(image), _row(draws, position)) if isinstance(step, AnySeeded) else step(image)
            if image is None:  # torchvision's transforms would pass it on
                return _checked(image, made_by=step)
        return _checked(image, made_by=steps[-1]) if steps else image

    def apply_with_mask(
        self, image: torch.Tensor, mask: torch.Tensor, position: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image and its mask [height, width] after the same transforms, seeded for the sample."""
        from torchvision import tv_tensors

        from distrain.data.transforms.resize import AnySeeded

        seed_generators(self._seed, Purpose.SAMPLE, *self._micro_batch.rng_key(position))
        both: Any = (tv_tensors.Image(image), tv_tensors.Mask(mask))
        for step in self._transforms.rest:
            assert not isinstance(step, AnySeeded)  # as `build_transforms` makes them for masks
            call: Callable[..., Any] = step
            both = call(*both)
            if not (isinstance(both, tuple) and len(both) == 2):
                raise ValueError(f"a transform returns {both!r:.60}{place_of_code(step)}, not an image and its mask")
        found = [part.as_subclass(torch.Tensor) if isinstance(part, torch.Tensor) else part for part in both]
        image, mask = _checked(found[0], made_by=self._transforms.rest[-1]), found[1]
        if not (isinstance(mask, torch.Tensor) and mask.shape == image.shape[1:] and mask.dtype == torch.uint8):
            seen = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, torch.Tensor) else f"{mask!r:.60}"
            raise ValueError(f"the mask is {seen} beside an image {list(image.shape)} after the transforms")
        return image, mask

    def apply_to_batch(self, images: torch.Tensor) -> torch.Tensor:
        """Return images [n, channels, height, width] on the CPU transformed; needs `is_batched` transforms."""
        from distrain.data.transforms.geometric import Batched

        for step, draws in zip(self._transforms.leading, self._draws, strict=True):
            assert isinstance(step, Batched)
            assert draws is not None
            images = step.apply_to_batch(images, draws)
        return images

    def to_parameters(self, size: "Size") -> "list[Parameters]":
        """Return the integers with which `apply_parameters` transforms images of one size, for each transform.

        Raises `ValueError` for images that cannot be transformed.
        """
        from distrain.data.transforms.geometric import Batched

        found = []
        for step, draws in zip(self._transforms.leading, self._draws, strict=True):
            assert isinstance(step, Batched)
            assert draws is not None
            parameters, size = step.to_parameters(draws, size)
            found.append(parameters)
        return found

    def apply_parameters(self, parameters: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Return images [n, channels, height, width] transformed on their device, where the `parameters` are, too."""
        from distrain.data.transforms.geometric import Batched

        for step, step_parameters in zip(self._transforms.leading, parameters, strict=True):
            assert isinstance(step, Batched)
            images = step.apply_parameters(images, step_parameters)
        return images


def build_transforms(transforms: TransformList, *, key: str, has_masks: bool = False) -> Transforms | None:
    """Compile the transforms of a split, of images alone or `has_masks`; None for an empty list.

    Raises `RecipeError` for an unknown name and for arguments that the transform does not accept.
    """
    if not transforms:
        return None
    if has_masks:
        return Transforms((), [_make_for_masks(transform, key=key) for transform in transforms])
    from distrain.data.transforms.geometric import Batched
    from distrain.data.transforms.resize import AnySeeded

    steps = [_build(transform, key=key) for transform in transforms]
    leading: list[Seeded] = []
    for step in steps:
        if not isinstance(step, AnySeeded):
            break
        leading.append(step)
    return Transforms(leading, steps[len(leading) :], is_batched=all(isinstance(step, Batched) for step in steps))


class Normalize:
    """Turns a batch into the model's input: float32, scaled from uint8 to [0, 1], then (x - mean) / std per channel.

    The input has `memory_format`, whatever the format of the loader's images.
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
                f"augment.mean needs a number for each channel of the images: {num_channels}, not {len(augment.mean)}"
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
            return torch.sub(images, self._mean_of_bytes).div_(self._std_of_bytes)  # float32, exact for bytes
        return images.to(torch.float32, memory_format=self._memory_format).sub(self._mean).div_(self._std)

    def invert(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the pixels of normalised images, float32 of the same shape: from 0 to 1 where they were bytes."""
        return inputs * self._std + self._mean


def describe_transform(transform: Transform, *, key: str) -> tuple[str, bool]:
    """Return a transform as text with all arguments, defaults too, and whether it is torchvision's."""
    from distrain.data.transforms import geometric

    if is_reference(transform.name) or transform.name in geometric.ADDED:
        return f"{transform.name}({', '.join(f'{n}={v}' for n, v in transform.arguments.items())})", False
    return repr(_make(transform, key=key)), True


def _build(transform: Transform, *, key: str) -> "AnySeeded | Unseeded":
    from distrain.data.transforms import geometric, resize

    built = _make(transform, key=key)
    is_users = is_reference(transform.name)
    drawn = None if is_users else geometric.from_torchvision(built) or resize.from_torchvision(built)
    step: AnySeeded | Unseeded = drawn or built
    return step


def _make_for_masks(transform: Transform, *, key: str) -> Any:
    from distrain.data.transforms import geometric

    if transform.name in geometric.ADDED:
        raise RecipeError(f"{key}: {transform.name} transforms images alone, and the data has masks; remove it")
    return _make(transform, key=key)


def _make(transform: Transform, *, key: str) -> Any:
    """Return the transform that a recipe names: torchvision's, one in `geometric.ADDED`, or the user's."""
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
        made = factory(**{name: _read_argument(name, value) for name, value in transform.arguments.items()})
    except (TypeError, ValueError) as error:
        frame = user_frame(error)
        place = "" if frame is None else f", {place_of(frame)}"
        raise RecipeError(f"{key}: {transform.name} does not accept {transform.arguments}: {error}{place}") from None
    if is_reference(transform.name) and not callable(made):
        place = place_of_code(factory)
        raise RecipeError(f"{key}: {transform.name} returns {made!r:.60}{place}; return a function of an image")
    return made


def _names() -> list[str]:
    """Return the names of all transforms that are available without a module."""
    from torchvision.transforms import v2

    from distrain.data.transforms import geometric

    every = {name: getattr(v2, name) for name in dir(v2)}
    return [
        *geometric.ADDED,
        *(n for n, kind in every.items() if isinstance(kind, type) and issubclass(kind, nn.Module)),
    ]


def _read_argument(name: str, value: Any) -> Any:
    """Return the member of a torchvision enumeration for its name in YAML, such as `interpolation: bilinear`."""
    from torchvision.transforms import v2

    enumerations: dict[str, list[Any]] = {"interpolation": [*v2.InterpolationMode], "policy": [*v2.AutoAugmentPolicy]}
    if name not in enumerations or not isinstance(value, str):
        return value
    pil_only = {"box", "hamming", "lanczos"}  # images are tensors here
    members = {member.value: member for member in enumerations[name] if member.value not in pil_only}
    if value not in members:
        raise ValueError(f"unknown {name} {value!r}; use {joined(list(members))}")
    return members[value]


def _checked(image: Any, made_by: "AnySeeded | Unseeded | None" = None) -> torch.Tensor:
    """Return an image [channels, height, width]; raises `ValueError`, naming the transform, for anything else."""
    if isinstance(image, torch.Tensor) and image.ndim == 3:
        return image
    seen = f"a tensor {list(image.shape)}" if isinstance(image, torch.Tensor) else f"{image!r:.60}"
    raise ValueError(f"a transform returns {seen}{place_of_code(made_by)}, not a tensor [channels, height, width]")


def _row(draws: "Draws | None", position: int) -> "Draws":
    assert draws is not None
    row: Draws = draws[position]
    return row
