"""Takes the first training inputs as the network gets them, with their names and targets."""

from dataclasses import dataclass

import torch

from distrain.data.sources.outputs import format_target
from distrain.data.transforms.visible import to_visible
from distrain.training.session import Session


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
