"""Initialises from data: passes images to a network that has `initialize_from` before it trains."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import nn

NUM_IMAGES = 1024  # that such a network is shown


@runtime_checkable
class InitializesFromImages(Protocol):
    """What a network of anyone's may have: a first look at the data."""

    def initialize_from(self, images: torch.Tensor) -> None:
        """Set weights by `images` float32 [n, channels, height, width], as the network gets them in evaluation.

        They are the first training samples of the data, the same on every rank, and on the CPU, as the network is.
        What is drawn from torch's global generator is the same on every rank too. It is not called where weights come
        from a file or a checkpoint.
        """
        ...


def initialize(model: nn.Module, images: Callable[[], torch.Tensor]) -> None:
    """Show a network that asks for it what `images` gives."""
    if isinstance(model, InitializesFromImages):
        with torch.no_grad():
            model.initialize_from(images())
