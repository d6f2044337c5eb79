"""Freezes weights up to a step or from a step on, and the statistics of norm layers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from distrain.config import Model
from distrain.config.parameter_patterns import select
from distrain.errors import ModelError

_NO_CONTEXT: AbstractContextManager[None] = nullcontext()

UnfreezeSteps = dict[str, float]  # by a weight's name: the first step that trains it; infinity if none does


def freeze(config: Model, model: nn.Module, *, heads: Sequence[str], steps_per_epoch: int) -> UnfreezeSteps:
    """Disable the gradients of weights that are never trained; return the step at which each frozen one is unfrozen.

    Weights that are unfrozen later keep their gradients, so that every strategy sees the same weights throughout. A
    norm layer without weights has the name of its `running_mean`. Raises `ModelError` for a pattern that matches
    nothing, and where no weight is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    names += [f"{path}.running_mean" for path, norm in _norms(model) if not list(norm.parameters(recurse=False))]
    steps: UnfreezeSteps = {}
    for pattern in config.freeze:
        steps |= dict.fromkeys(select(pattern, names, heads=heads, key="model.freeze"), math.inf)
    for pattern, epoch in config.unfreeze_epochs.items():
        unfrozen = [name for name in select(pattern, names, heads=heads, key="model.unfreeze_epochs") if name in steps]
        if not unfrozen:
            raise ModelError(f"model.unfreeze_epochs: {pattern!r} matches nothing that model.freeze has frozen")
        steps |= {name: min(steps[name], _first_step(epoch, steps_per_epoch)) for name in unfrozen}
    if steps and all(steps.get(name, 0) > 0 for name, weight in model.named_parameters() if weight.requires_grad):
        raise ModelError(
            f"model.freeze={list(config.freeze)} leaves no weight to train in the first step; remove something from it"
        )
    for name, weight in model.named_parameters():
        if steps.get(name) == math.inf:
            weight.requires_grad = False
    return steps


def end_steps(config: Model, model: nn.Module, *, heads: Sequence[str], steps_per_epoch: int) -> dict[str, int]:
    """Return the step at which each weight that is trained at first is frozen, by its name.

    The statistics of norm layers continue to change. Raises `ModelError` for a pattern that matches nothing.
    """
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    steps: dict[str, int] = {}
    for pattern, epoch in config.freeze_epochs.items():
        steps |= dict.fromkeys(
            select(pattern, names, heads=heads, key="model.freeze_epochs"), _first_step(epoch, steps_per_epoch)
        )
    return steps


def check_something_trains(
    model: nn.Module,
    unfreeze_steps: UnfreezeSteps,
    ends: Mapping[str, int],
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> None:
    """Raise `ModelError` for the first of the `total_steps` steps in which every weight is frozen.

    `unfreeze_steps` and `ends` are the results of `freeze` and `end_steps` for the network.
    """
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    spans = [(unfreeze_steps.get(name, 0), ends.get(name, math.inf)) for name in names]
    step = 0.0
    while step < total_steps:
        last_end = max((end for start, end in spans if start <= step), default=0)
        if last_end <= step:
            break
        step = last_end
    if step >= total_steps or not names:
        return
    starts = [start for start, end in spans if step < start < min(end, total_steps)]
    until = f"to epoch {min(starts) / steps_per_epoch:g}" if starts else "on"
    raise ModelError(
        f"model.freeze_epochs leaves no weight to train from epoch {step / steps_per_epoch:g} {until}; remove a weight "
        f"from it, freeze it later, or train for fewer epochs"
    )


def _first_step(epoch: float, steps_per_epoch: int) -> int:
    return math.ceil(round(epoch * steps_per_epoch, 6))  # 0.1 x 30 is slightly more than 3 in floating point


class Freezing:
    """Keeps frozen weights unchanged, as a function of the step alone, so that a resume continues it.

    The network is the one in training, after a strategy has replaced its parameters. `ends` are the steps at which
    weights are frozen, from `end_steps`.
    """

    def __init__(self, model: nn.Module, unfreeze_steps: UnfreezeSteps, ends: Mapping[str, int] | None = None) -> None:
        self._model = model
        self._frozen = [
            (weight, unfreeze_steps[name])
            for name, weight in model.named_parameters()
            if name in unfreeze_steps and unfreeze_steps[name] != math.inf
        ]
        self._ending = [(weight, ends[name]) for name, weight in model.named_parameters() if ends and name in ends]
        self._norms = [(norm, min(steps)) for norm, steps in _unfreeze_steps(model, unfreeze_steps) if min(steps) > 0]
        self._statistics: list[tuple[torch.Tensor, torch.Tensor, float]] | None = None
        self._last_step = max((step for _, step in (*self._frozen, *self._norms)), default=0)
        self._first_end = min((step for _, step in self._ending), default=math.inf)

    def begin_step(self, step: int) -> None:
        """Put norm layers that are frozen at `step` into evaluation mode, and the others into the network's mode."""
        for norm, unfreeze_step in self._norms:
            norm.training = self._model.training and step >= unfreeze_step
        if self._statistics is None:
            self._statistics = [
                (buffer, buffer.clone(), unfreeze_step)
                for norm, unfreeze_step in self._norms
                if step < unfreeze_step
                for buffer in norm.buffers(recurse=False)
            ]

    def without_frozen_gradients(self, step: int) -> AbstractContextManager[None]:
        """Return the context of an update, in which weights that are frozen at `step` have no gradient.

        They are therefore ignored by the update rule, momentum, weight decay and the clipping of the gradient norm.
        """
        return _NO_CONTEXT if self._last_step <= step < self._first_end else self._without_gradients(step)

    @contextmanager
    def _without_gradients(self, step: int) -> Iterator[None]:
        gradients = [(weight, weight.grad) for weight, unfreeze_step in self._frozen if step < unfreeze_step]
        gradients += [(weight, weight.grad) for weight, end in self._ending if step >= end]
        for weight, _ in gradients:
            weight.grad = None
        # Averaging equal statistics over ranks may change their last bit, and exact mode accumulates every step.
        with torch.no_grad():
            for buffer, kept, unfreeze_step in self._statistics or ():
                if step < unfreeze_step:
                    buffer.copy_(kept)
        yield
        for weight, gradient in gradients:
            weight.grad = gradient  # in exact mode a view of the buffer that sums the next step's gradients


def _unfreeze_steps(model: nn.Module, unfreeze_steps: UnfreezeSteps) -> Iterator[tuple[nn.Module, Sequence[float]]]:
    """Yield each norm layer with running statistics whose weights are all frozen, and the steps that unfreeze these."""
    for path, norm in _norms(model):
        paths = [f"{path}.{name}" for name, _ in norm.named_parameters(recurse=False)] or [f"{path}.running_mean"]
        if all(name in unfreeze_steps for name in paths):
            yield norm, [unfreeze_steps[name] for name in paths]


def _norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    ]
