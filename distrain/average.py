"""Owns the exponential moving average of the weights, which is evaluated in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """The moving average of all floating-point weights and buffers of a network, by their names.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, in its exponential form. In the
    first steps the decay is (1 + step) / (10 + step) where that is less, so that the average leaves the random weights
    of the beginning behind.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.tensors = {n: t.detach().clone() for n, t in module.state_dict().items() if t.is_floating_point()}
        self._decay = decay
        self._live = {n: t for n, t in module.state_dict().items() if n in self.tensors}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._live.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network have the averaged weights, and its own again at the end."""
        own = {name: live.detach().clone() for name, live in self._live.items()}
        _copy(self._live, self.tensors)
        try:
            yield
        finally:
            _copy(self._live, own)


@torch.no_grad()
def _copy(targets: dict[str, torch.Tensor], sources: dict[str, torch.Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(sources[name])
