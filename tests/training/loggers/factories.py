"""Makes training inputs that loggers show."""

import torch

from distrain.training.input_samples import InputSamples


def input_samples(visible: torch.Tensor, *, target: str = "cat") -> InputSamples:
    """Return samples whose pixels are `visible`, uint8 [n, channels, height, width]."""
    numbers = range(len(visible))
    return InputSamples(
        images=visible / 255,
        visible=visible,
        names=[f"photos/{number}.jpg" for number in numbers],
        indices=list(numbers),
        targets=[target for _ in numbers],
    )
