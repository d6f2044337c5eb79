"""Transforms a training batch on its device before the network sees it: normalise, resize, the user's own, mix."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from distrain.config import Augment, Recipe, Transform
from distrain.config.user_code import find_refusal, make_part
from distrain.data.sources.base import Batch
from distrain.data.transforms.pipeline import Normalize
from distrain.errors import ModelError, RecipeError
from distrain.global_rng import seed_generators
from distrain.messages import counted, first_line
from distrain.rng import Purpose, derive_seed
from distrain.system.exits import place_of_code
from distrain.training.losses import LossFunction

_OWN = "augment.batch"


class BatchTransform:
    """Makes the network's input and the loss's targets of a micro-batch, with draws by (seed, step, micro-batch)."""

    def __init__(self, recipe: Recipe, normalize: Normalize, *, steps_per_epoch: int, num_classes: int) -> None:
        self._normalize = normalize
        self._sizes = [(epoch * steps_per_epoch, pixels) for epoch, pixels in recipe.augment.sizes or ()]
        mixing = Mixing(recipe.augment, num_classes=num_classes, seed=recipe.train.seed)
        self._mixing = mixing if recipe.augment.is_mixed else None
        own = OwnBatchTransforms(recipe.augment.batch, seed=recipe.train.seed)
        self._own = own if recipe.augment.batch else None
        self._is_channels_last = recipe.compute.memory_format == "channels_last"

    def __call__(self, images: torch.Tensor, targets: torch.Tensor, *, step: int, index: int) -> Batch:
        """Return images float32 [n, channels, height, width], and targets: as they are, or float32 [n, classes]."""
        images = self.inputs(images, step=step)
        if self._own is not None:
            images, targets = self._own(images, targets, step=step, index=index)
        if self._mixing is not None:
            images, targets = self._mixing(images, targets, step=step, index=index)
        if self._is_channels_last:  # most already are; mixing or the user's code may have lost it
            images = images.contiguous(memory_format=torch.channels_last)
        return images, targets

    def inputs(self, images: torch.Tensor, *, step: int) -> torch.Tensor:
        """Return images as the network gets them at a step, but not mixed, and without the user's transforms."""
        images = self._normalize(images)
        return resize(images, self.pixels(step)) if self._sizes else images

    def pixels(self, step: int) -> int:
        """Return the side of the images at a step, counted from 0, where the recipe gives sizes."""
        return next(pixels for first_step, pixels in reversed(self._sizes) if step >= first_step)

    @property
    def largest_step(self) -> int:
        """The first step at which the images are as large as they become."""
        return max(self._sizes, key=lambda size: size[1], default=(0, 0))[0]

    @property
    def smallest_step(self) -> int:
        """The first step at which the images are as small as they become."""
        return min(self._sizes, key=lambda size: size[1], default=(0, 0))[0]


class OwnBatchTransforms:
    """The user's transforms of a micro-batch, each a function (images, targets) -> (images, targets)."""

    def __init__(self, transforms: Sequence[Transform], *, seed: int) -> None:
        self._made = [(part.name, make_part(part.name, part.arguments, key=_OWN)) for part in transforms]
        for name, made in self._made:
            refusal = find_refusal(made, {}, "images", "targets") if callable(made) else "it cannot be called"
            if refusal is not None:
                raise RecipeError(
                    f"{_OWN}: {name} returns {made!r:.60}{place_of_code(made)}, which is no function of images and "
                    f"targets ({refusal})"
                )
        self._seed = seed

    def __call__(self, images: torch.Tensor, targets: torch.Tensor, *, step: int, index: int) -> Batch:
        """Transform images float32 [n, channels, height, width] and their targets, with seeded generators.

        Raises `RecipeError` where one returns anything else than as many images and targets.
        """
        count = len(images)
        seed_generators(self._seed, Purpose.BATCH, step, index)
        if images.is_cuda:
            value = derive_seed(self._seed, Purpose.BATCH, step, index)
            torch.cuda.default_generators[images.device.index].manual_seed(value)
        for name, transform in self._made:
            made = transform(images, targets)
            if not (
                isinstance(made, tuple) and len(made) == 2 and all(isinstance(part, torch.Tensor) for part in made)
            ):
                raise RecipeError(
                    f"{_OWN}: {name} gives {type(made).__name__}{place_of_code(transform)}; return (images, targets)"
                )
            images, targets = made
            if not (len(images) == len(targets) == count and images.ndim == 4 and images.is_floating_point()):
                raise RecipeError(
                    f"{_OWN}: {name} gives images {list(images.shape)} and targets {list(targets.shape)}"
                    f"{place_of_code(transform)} for {counted(count, 'sample')}; return that number of both, "
                    f"images in floating point"
                )
        return images, targets


class Mixing:
    """MixUp and CutMix within a micro-batch, in torchvision's form, whose partner of a sample is its neighbour.

    Zhang et al., "mixup: beyond empirical risk minimization", 2018; Yun et al., "CutMix", 2019.
    """

    def __init__(self, augment: Augment, *, num_classes: int, seed: int) -> None:
        chosen = {"MixUp": augment.mixup, "CutMix": augment.cutmix}
        self._mixers = [_mixer(kind, alpha, num_classes) for kind, alpha in chosen.items() if alpha is not None]
        self._probability = augment.mix_prob
        self._num_classes = num_classes
        self._seed = seed

    def __call__(self, images: torch.Tensor, targets: torch.Tensor, *, step: int, index: int) -> Batch:
        """Mix images float32 [n, channels, height, width] and classes int64 [n] to shares float32 [n, classes]."""
        # Drawn from torch's own generator on the CPU, which is seeded again for the network's draws.
        torch.default_generator.manual_seed(derive_seed(self._seed, Purpose.MIXING, step, index))
        if self._probability < 1 and float(torch.rand(())) >= self._probability:
            return images, F.one_hot(targets, self._num_classes).float()
        mixer = self._mixers[int(torch.randint(len(self._mixers), ()))]
        mixed: Batch = mixer(images, targets)
        return mixed


def _mixer(kind: str, alpha: float, num_classes: int) -> nn.Module:
    from torchvision.transforms import v2  # takes seconds to import: only where it is used

    mixer: nn.Module = getattr(v2, kind)(alpha=alpha, num_classes=num_classes)
    return mixer


def resize(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """Resize images float32 [n, channels, height, width] to squares of `pixels` pixels a side, antialiased."""
    if images.shape[-2:] == (pixels, pixels):
        return images
    return F.interpolate(images, size=(pixels, pixels), mode="bilinear", antialias=True)


def check_sizes(recipe: Recipe, model: nn.Module, *, num_channels: int) -> None:
    """Raise `ModelError` where a network, on the CPU and in evaluation, does not accept images of `augment.sizes`."""
    for _, pixels in recipe.augment.sizes or ():
        try:
            with torch.no_grad():
                model(torch.zeros(1, num_channels, pixels, pixels))
        except Exception as error:  # noqa: BLE001 - each network has its own way to refuse a size
            reason = first_line(error)
            raise ModelError(
                f"model.name={recipe.model.name} does not accept images of {pixels}x{pixels} pixels, which "
                f"augment.sizes requests ({reason})"
            ) from None


def check_own_transforms(
    recipe: Recipe,
    transform: BatchTransform,
    images: torch.Tensor,
    targets: torch.Tensor,
    loss_function: LossFunction,
    *,
    num_outputs: int,
) -> None:
    """Raise `RecipeError` where the user's transforms of a batch give no batch, or targets that the loss refuses.

    `images` and `targets` are some training samples, as read, on the device.
    """
    if not recipe.augment.batch:
        return
    _, made = transform(images, targets, step=0, index=0)
    try:
        loss_function(torch.zeros(len(made), num_outputs, device=made.device), made)
    except Exception as error:  # noqa: BLE001 - each loss has its own way to refuse targets
        raise RecipeError(
            f"loss.name={recipe.loss.name} does not accept the targets {list(made.shape)} that augment.batch makes "
            f"({first_line(error)}); use a loss that does"
        ) from None


def check_mixing(
    recipe: Recipe, loss_function: LossFunction, targets: torch.Tensor, *, num_classes: int, micro_batch_size: int
) -> None:
    """Raise `RecipeError` where the samples cannot be mixed, or the loss does not accept mixed targets.

    `targets` are those of some samples.
    """
    if not recipe.augment.is_mixed:
        return
    if targets.ndim != 1 or targets.dtype != torch.int64:
        raise RecipeError(
            f"augment.mixup and augment.cutmix mix samples of one class each, and the targets of data.source="
            f"{recipe.data.source} are {targets.dtype} {list(targets.shape)}; remove both"
        )
    if micro_batch_size < 2:
        raise RecipeError(
            "augment.mixup and augment.cutmix mix the samples of a micro-batch, and each has only one; "
            "raise train.micro_batch_size, or remove both"
        )
    shares = torch.full((2, num_classes), 1 / num_classes, device=targets.device)
    try:
        loss_function(torch.zeros_like(shares), shares)
    except Exception as error:  # noqa: BLE001 - what a loss raises that was written for classes is its own affair
        reason = first_line(error)
        raise RecipeError(
            f"loss.name={recipe.loss.name} does not accept the shares of classes that augment.mixup and augment.cutmix "
            f"make of the targets ({reason}); remove both, or use cross_entropy"
        ) from None
