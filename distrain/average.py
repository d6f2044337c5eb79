"""Owns the exponential moving average of the weights, which is evaluated in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from distrain.sharding import own_part


class WeightAverage:
    """The moving average of all floating-point weights and buffers of a network, by their names.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, in its exponential form. In the
    first steps the decay is (1 + step) / (10 + step) where that is less, so that the average leaves the random weights
    of the beginning behind.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.tensors = {n: t.detach().clone() for n, t in module.state_dict().items() if t.is_floating_point()}
        self._decay = decay
        live = {n: t for n, t in module.state_dict().items() if n in self.tensors}
        self._averages = [own_part(tensor) for tensor in self.tensors.values()]
        self._live = [own_part(tensor) for tensor in live.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._live, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network have the averaged weights, and its own again at the end."""
        own = [live.clone() for live in self._live]
        with torch.no_grad():
            torch._foreach_copy_(self._live, self._averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._live, own)
