"""Averages weights: moving and stochastic averages to evaluate, and lookahead's slow weights."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from distrain.checkpoint.tensors import SWA_COUNT
from distrain.config import Lookahead
from distrain.tensors.dtensor import local_shard, reshard
from distrain.tensors.module_state import split
from distrain.training.step_watch import not_finite


class AveragedWeights(Protocol):
    """Weights and buffers that are evaluated, saved as `average.NAME` and exported in place of those in training.

    `tensors` are they by the names of the network's `state_dict`. `has_own_statistics` says that the statistics of
    BatchNorm must be computed for them; `is_active` that there are any yet, and the network's own are evaluated until
    then.
    """

    tensors: dict[str, torch.Tensor]
    has_own_statistics: bool

    @property
    def is_active(self) -> bool:
        """Whether there is an average."""
        ...

    @property
    def own_state(self) -> dict[str, torch.Tensor]:
        """What else a checkpoint has of it, by its names there."""
        ...

    def update(self, step: int) -> None:
        """Average the weights after step `step`, counted from 0."""
        ...

    def in_place(self) -> AbstractContextManager[None]:
        """Swap the averaged weights into the network, and its own back at the end."""
        ...

    def take_buffers(self) -> None:
        """Take over the network's buffers, while the average is in place."""
        ...

    def refresh(self) -> None:
        """Bring `tensors` up to date for a checkpoint."""
        ...


class EmaWeights:
    """The moving average of all floating-point weights and buffers of a network, by their names.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, in its exponential form. In the
    first steps the decay is less, so that the average leaves the random weights of the beginning behind: at most
    (1 + step) / (10 + step), or 1 - (1 + step)^-power with the power of `warmup`, 2/3 if that is True.
    """

    has_own_statistics = False
    is_active = True

    def __init__(self, module: nn.Module, decay: float, *, warmup: bool | float | None = None) -> None:
        self._live = FloatingPoint(module)
        self.tensors = self._live.clones()
        self.own_state: dict[str, torch.Tensor] = {}
        self._decay = decay
        self._warmup = warmup
        self._averages = [local_shard(tensor) for tensor in self.tensors.values()]
        self._constants = not_finite(self._averages)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step `step`, counted from 0."""
        decay = min(self._decay, self._most(step))
        _approach(self._averages, self._live.parts(), 1 - decay, constants=self._constants)

    def in_place(self) -> AbstractContextManager[None]:
        """Swap the averaged weights into the network, and its own back at the end."""
        return self._live.replaced_by(self._averages)

    def take_buffers(self) -> None:
        """Do nothing: buffers are averaged as weights are."""

    def refresh(self) -> None:
        """Do nothing: the average is always up to date."""

    def _most(self, step: int) -> float:
        if self._warmup is None:
            return (1 + step) / (10 + step)
        if self._warmup is False:
            return 1.0
        return 1 - float((1 + step) ** -(2 / 3 if self._warmup is True else self._warmup))


class SwaWeights:
    """The mean of the weights at the ends of some steps.

    Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018,
    https://arxiv.org/abs/1803.05407, as torch's `AveragedModel`. Buffers are those of the network in the last such
    step; the statistics of BatchNorm are computed for an evaluation.
    """

    has_own_statistics = True

    def __init__(self, module: nn.Module, *, first_step: int, every_steps: int) -> None:
        """Take the first weights after `first_step` steps, or the first step if that is 0."""
        self._live = FloatingPoint(module)
        self.tensors = self._live.clones()
        self._averages = [local_shard(tensor) for tensor in self.tensors.values()]
        self._count = torch.zeros((), dtype=torch.int64)  # of the weights in the mean
        self._first_step, self._every_steps = first_step, every_steps

    @property
    def is_active(self) -> bool:
        """Whether there is an average."""
        return bool(self._count)

    @property
    def own_state(self) -> dict[str, torch.Tensor]:
        """The number of weights in the mean."""
        return {SWA_COUNT: self._count}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average the weights after step `step`, counted from 0, if it is time to."""
        since = step + 1 - max(1, self._first_step)
        if since < 0 or since % self._every_steps:
            return
        live, places = self._live.parts(), self._live.weight_places
        share = 1 / (int(self._count) + 1)
        torch._foreach_lerp_([self._averages[place] for place in places], [live[place] for place in places], share)
        self.take_buffers()
        self._count += 1

    def in_place(self) -> AbstractContextManager[None]:
        """Swap the averaged weights into the network, and its own back at the end."""
        return self._live.replaced_by(self._averages)

    @torch.no_grad()
    def take_buffers(self) -> None:
        """Take over the network's buffers."""
        live = self._live.parts()
        for place in self._live.buffer_places:
            self._averages[place].copy_(live[place])

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the network's weights and buffers before there is an average."""
        if not self.is_active:
            torch._foreach_copy_(self._averages, self._live.parts())


class LookaheadWeights:
    """The slow weights, and buffers, of Lookahead, by their names: every few steps they move towards the network's own.

    Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", 2019, https://arxiv.org/abs/1907.08610, around
    any rule. At each synchronization the network is set back to them, and again at the end of the run.
    """

    def __init__(self, module: nn.Module, config: Lookahead, *, total_steps: int) -> None:
        self._live = FloatingPoint(module)
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


class ScheduleFreeWeights:
    """The weights that a schedule-free optimizer evaluates: its average of those in training.

    Defazio et al., "The road less scheduled", 2024, https://arxiv.org/abs/2405.15682. The optimizer computes them by
    its method `eval()`; the weights in training come back to the bit, whatever its `train()` would round.
    """

    has_own_statistics = True
    is_active = True

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._live = FloatingPoint(module)
        self.tensors = self._live.clones()
        self.own_state: dict[str, torch.Tensor] = {}
        self._averages = [local_shard(tensor) for tensor in self.tensors.values()]
        self._module = module
        self._optimizer: Any = optimizer
        self._has_buffers = False  # whether those in `tensors` were taken over for the current weights

    def update(self, _: int) -> None:
        """Note that the optimizer has changed the average."""
        self._has_buffers = False

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the averaged weights into the network, and its own back at the end."""
        own = [live.clone() for live in self._live.parts()]
        reshard(self._module)
        self._optimizer.eval()
        try:
            yield
        finally:
            self._optimizer.train()
            self._live.write(own)

    @torch.no_grad()
    def take_buffers(self) -> None:
        """Take over the network's buffers, while the average is in place."""
        live = self._live.parts()
        for place in self._live.buffer_places:
            self._averages[place].copy_(live[place])
        self._has_buffers = True

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the average for a checkpoint; without an evaluation of it, buffers are those of the training."""
        if not self._has_buffers:
            self.take_buffers()
        with self.in_place():
            live = self._live.parts()
            for place in self._live.weight_places:
                self._averages[place].copy_(live[place])


class FloatingPoint:
    """The weights and buffers of a network that are not whole numbers, as they are at each moment.

    A forward pass may put another tensor into the place of a buffer. `buffer_places` are the places of buffers among
    `parts`, `weight_places` those of weights.
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
        self.buffer_places = [number for number, _, _, _ in self._buffers]
        self.weight_places = sorted(set(range(len(self._parts))) - set(self.buffer_places))

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

    @contextmanager
    def replaced_by(self, values: list[torch.Tensor]) -> Iterator[None]:
        """Swap values into the network, and its own back at the end."""
        own = [live.clone() for live in self.parts()]
        self.write(values)
        try:
            yield
        finally:
            self.write(own)

    def write(self, values: list[torch.Tensor]) -> None:
        """Replace the network's values, in the order of `parts`."""
        reshard(self._module)
        with torch.no_grad():
            torch._foreach_copy_(self.parts(), values)
