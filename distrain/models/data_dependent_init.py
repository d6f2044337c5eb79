"""Initialises from data: passes images to a network that has `initialize_from` before it trains."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import nn

NUM_IMAGES = 1024  # passed to such a network


@runtime_checkable
class InitializesFromImages(Protocol):
    """A network whose initial weights depend on the data."""

    def initialize_from(self, images: torch.Tensor) -> None:
        """Set weights by `images` float32 [n, channels, height, width], prepared as for evaluation.

        They are the first training samples, the same on every rank. Images and network are on the CPU, and torch's
        global generator has the same state on every rank. Not called where weights come from a file or a checkpoint.
        """
        ...


def initialize(model: nn.Module, images: Callable[[], torch.Tensor]) -> None:
    """Pass the result of `images` to a network that has `initialize_from`."""
    if isinstance(model, InitializesFromImages):
        with torch.no_grad():
            model.initialize_from(images())
