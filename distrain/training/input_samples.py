"""Takes the first training inputs as the network gets them, with their names and targets, and makes them visible."""

from dataclasses import dataclass

import torch

from distrain.data.sources.outputs import format_target
from distrain.training.session import Session

_ROUNDING = 1e-3  # by which normalising and its inverse may leave the range from 0 to 1


@dataclass(frozen=True)
class InputSamples:
    """The first training samples of a run, whichever step it resumes at."""

    images: torch.Tensor  # as the network gets them in step 0, float32 [n, channels, height, width], on the CPU
    visible: torch.Tensor  # the same as pixels, uint8 [n, 1 or 3, height, width], on the CPU
    names: list[str]  # the images' paths, or their names in the source
    indices: list[int]  # of the samples in the training split
    targets: list[str]  # as text


def take_input_samples(session: Session) -> InputSamples:
    """Return the first samples of rank 0's first micro-batch: augmented, normalised, resized and mixed.

    Mixing needs the sample before each in the micro-batch, and the last one before the first: where only a part of the
    micro-batch was read, its first sample is not returned. The random numbers stay as they were.
    """
    source, (images, targets) = session.train_reader.source, session.first
    micro_batch, device = session.sampler.first_micro_batch(), session.world.device
    with torch.random.fork_rng(devices=[]):
        inputs, trained = session.prepare(images.to(device), targets.to(device), step=0, index=0)
    is_part = session.recipe.augment.is_mixed and len(images) < len(micro_batch.indices)
    shown = slice(1 if is_part else 0, len(images))
    inputs, indices = inputs[shown], micro_batch.indices[shown].tolist()
    return InputSamples(
        images=inputs.cpu(),
        visible=to_visible(session.normalize.invert(inputs).cpu()),
        names=[source.describe(index) for index in indices],
        indices=indices,
        targets=[format_target(value, source.target, source.classes) for value in trained[shown].cpu().numpy()],
    )


def to_visible(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels float32 [n, channels, height, width] as bytes, uint8 [n, 1 or 3, height, width].

    Where any are not from 0 to 1, each image is stretched from its own range. Channels that are not RGB become one
    grey, and values that are not finite black.
    """
    pixels = pixels.double()
    if pixels.shape[1] not in {1, 3}:
        pixels = pixels.mean(dim=1, keepdim=True)
    is_finite = pixels.isfinite()
    lowest = pixels.where(is_finite, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    highest = pixels.where(is_finite, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    if lowest.min() < -_ROUNDING or highest.max() > 1 + _ROUNDING:
        pixels = (pixels - lowest) / (highest - lowest).clamp_min(1e-9)
    return pixels.where(is_finite, 0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
