"""Averages weights: an exponential moving average to evaluate, and lookahead's slow weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from distrain.config import Lookahead
from distrain.tensors.dtensor import local_shard, reshard
from distrain.tensors.module_state import split
from distrain.training.step_watch import not_finite


class EmaWeights:
    """The moving average of all floating-point weights and buffers of a network, by their names.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, in its exponential form. In the
    first steps the decay is (1 + step) / (10 + step) where that is less, so that the average leaves the random weights
    of the beginning behind.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._live = _FloatingPoint(module)
        self.tensors = self._live.clones()
        self._decay = decay
        self._averages = [local_shard(tensor) for tensor in self.tensors.values()]
        self._constants = not_finite(self._averages)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        _approach(self._averages, self._live.parts(), 1 - decay, constants=self._constants)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the averaged weights into the network, and its own back at the end."""
        own = [live.clone() for live in self._live.parts()]
        self._live.write(self._averages)
        try:
            yield
        finally:
            self._live.write(own)


class LookaheadWeights:
    """The slow weights, and buffers, of Lookahead, by their names: every few steps they move towards the network's own.

    Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", 2019, https://arxiv.org/abs/1907.08610, around
    any rule. At each synchronization the network is set back to them, and again at the end of the run.
    """

    def __init__(self, module: nn.Module, config: Lookahead, *, total_steps: int) -> None:
        self._live = _FloatingPoint(module)
        self.tensors = self._live.clones()
        self._config = config
        self._total_steps = total_steps
        self._slow = [local_shard(tensor) for tensor in self.tensors.values()]
        self._constants = not_finite(self._slow)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Synchronize the two after step `step`, counted from 0, if it is time to."""
        taken = step + 1
        if taken % self._config.every_steps == 0:
            decay = self._config.decay * (taken / self._total_steps) ** self._config.power
            _approach(self._slow, self._live.parts(), 1 - decay, constants=self._constants)
        elif taken != self._total_steps:
            return
        self._live.write(self._slow)


def _approach(
    averaged_weights: list[torch.Tensor], live: list[torch.Tensor], weight: float, *, constants: list[int]
) -> None:
    """Move tensors towards others; those at the places `constants` become equal to them.

    The mean of -inf and -inf, as it is computed, is NaN.
    """
    torch._foreach_lerp_(averaged_weights, live, weight)
    for place in constants:
        averaged_weights[place].copy_(live[place])


class _FloatingPoint:
    """The weights and buffers of a network that are not whole numbers, as they are at each moment.

    A forward pass may put another tensor into the place of a buffer.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._named = {name: tensor for name, tensor in split(module)[0].items() if tensor.is_floating_point()}
        self._parts = [local_shard(tensor) for tensor in self._named.values()]
        places = {
            (f"{path}.{name}" if path else name): (part, name)
            for path, part in module.named_modules()
            for name in part._buffers
        }
        self._buffers = [
            (number, *places[name], places[name][0].get_buffer(places[name][1]))
            for number, name in enumerate(self._named)
            if name in places
        ]

    def clones(self) -> dict[str, torch.Tensor]:
        """Return copies by the names of the network's `state_dict`."""
        return {name: tensor.detach().clone() for name, tensor in self._named.items()}

    def parts(self) -> list[torch.Tensor]:
        """Return what this rank has of them; they share their memory with the network."""
        for place, (number, module, name, known) in enumerate(self._buffers):
            buffer = module._buffers[name]
            if buffer is not known and buffer is not None:
                self._parts[number] = local_shard(buffer)
                self._buffers[place] = (number, module, name, buffer)
        return self._parts

    def write(self, values: list[torch.Tensor]) -> None:
        """Replace the network's values, in the order of `parts`."""
        reshard(self._module)
        with torch.no_grad():
            torch._foreach_copy_(self.parts(), values)
