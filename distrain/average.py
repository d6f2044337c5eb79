"""Owns weights that follow the network's own: a moving average, evaluated in their place, and slow ones that lead."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from distrain.module_state import split
from distrain.recipe import Lookahead
from distrain.sharding import own_part, reshard


class WeightAverage:
    """The moving average of all floating-point weights and buffers of a network, by their names.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, in its exponential form. In the
    first steps the decay is (1 + step) / (10 + step) where that is less, so that the average leaves the random weights
    of the beginning behind.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        live = _floating_point(module)
        self.tensors = {name: tensor.clone() for name, tensor in live.items()}
        self._module = module
        self._decay = decay
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
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(own)

    def _write(self, values: list[torch.Tensor]) -> None:
        reshard(self._module)
        with torch.no_grad():
            torch._foreach_copy_(self._live, values)


class SlowWeights:
    """The slow weights, and buffers, of Lookahead, by their names: every few steps they move towards the network's own.

    Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", 2019, https://arxiv.org/abs/1907.08610, around
    any rule. At such a meeting the network is set back to them, and so it is at the end of the training.
    """

    def __init__(self, module: nn.Module, config: Lookahead, *, total_steps: int) -> None:
        live = _floating_point(module)
        self.tensors = {name: tensor.clone() for name, tensor in live.items()}
        self._module = module
        self._config = config
        self._total_steps = total_steps
        self._slow = [own_part(tensor) for tensor in self.tensors.values()]
        self._live = [own_part(tensor) for tensor in live.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Let the two meet after step `step`, counted from 0, where that is due."""
        taken = step + 1
        if taken % self._config.every_steps == 0:
            decay = self._config.decay * (taken / self._total_steps) ** self._config.power
            torch._foreach_lerp_(self._slow, self._live, 1 - decay)
        elif taken != self._total_steps:
            return
        reshard(self._module)
        torch._foreach_copy_(self._live, self._slow)


def _floating_point(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights and buffers of a network that are not whole numbers; they share its memory."""
    return {name: tensor.detach() for name, tensor in split(module)[0].items() if tensor.is_floating_point()}
