"""Tries an optimizer that is not distrain's own on small weights, to find out what it does not support.

The weights have the numbers of dimensions of the network's. What is tried: an update, the same update again, a resume
from its saved state, and the update of sharded weights. Nothing of the training changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distrain import config as recipe
from distrain.checkpoint.optimizer_state import empty_optimizer_state, optimizer_tensors, restore_optimizer
from distrain.errors import RecipeError, UserError
from distrain.global_rng import seed_generators
from distrain.messages import first_line
from distrain.rng import Purpose
from distrain.runs.user_errors import packages_of
from distrain.system.exits import user_frame
from distrain.tensors.dtensor import full_tensor, is_sharded, local_shard, shard_like
from distrain.tensors.module_state import Tensors
from distrain.tensors.preserve_state import preserve_state

Groups = list[dict[str, Any]]
Build = Callable[[Groups], torch.optim.Optimizer]

_MAX_SIDE = 160  # of a tried weight; some optimizers treat matrices of 128 rows and columns in another way
_TOLERANCE = 0.05  # of the change of the weights, where they are sharded: Muon computes in bfloat16


@dataclass(frozen=True)
class SampleGroup:
    """A parameter group with the shapes of some of its weights; `like` is a weight, for its device and shards."""

    settings: dict[str, Any]
    shapes: list[torch.Size]
    like: torch.Tensor


def sample_groups(groups: Sequence[dict[str, Any]]) -> list[SampleGroup]:
    """Return samples of parameter groups: the smallest and the largest weight of each number of dimensions."""
    samples = []
    for group in groups:
        shapes: list[torch.Size] = []
        for ndim in sorted({weight.ndim for weight in group["params"]}):
            sizes = sorted((weight.shape for weight in group["params"] if weight.ndim == ndim), key=lambda s: s.numel())
            largest = torch.Size(min(side, _MAX_SIDE) for side in sizes[-1])
            shapes += dict.fromkeys([sizes[0], largest])
        settings = {key: group[key] for key in ("lr_factor", "weight_decay")}
        samples.append(SampleGroup(settings, shapes, group["params"][0]))
    return samples


def check_update(config: recipe.Optimizer, build: Build, samples: Sequence[SampleGroup]) -> None:
    """Raise `RecipeError` for an optimizer without an update of dense gradients, or one that cannot be repeated."""
    title = f"optimizer.name={config.name}"
    with preserve_state(nn.Module()):
        try:
            first, again = (_Trial(build, samples, seed=seed) for seed in (1, 2))
        except Exception as error:
            if isinstance(error, UserError) or user_frame(error, packages_of([config.name])) is not None:
                raise
            raise RecipeError(f"{title} cannot update the weights: {first_line(error)}") from error
        if not first.equals(again):
            raise RecipeError(
                f"{title} draws random numbers in its update, which would differ between processes, and after a resume"
            )
        try:
            is_complete = first.resumed().equals(first.continued())
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError):
            is_complete = False
        if not is_complete:
            raise RecipeError(
                f"{title} has state outside of its `state` and `param_groups`, which no checkpoint has, so that a "
                "resumed run would train differently"
            )


def check_sharded(config: recipe.Optimizer, build: Build, samples: Sequence[SampleGroup]) -> None:
    """Raise `RecipeError` for an optimizer that updates sharded weights in another way, if there are any.

    All ranks call it together.
    """
    if not any(is_sharded(sample.like) for sample in samples):
        return
    title = f"optimizer.name={config.name} does not support the sharded weights of parallel.strategy=fsdp"
    advice = "use parallel.strategy=ddp"
    with preserve_state(nn.Module()):
        full = _Trial(build, samples, seed=1)
        try:
            parts = _Trial(build, samples, seed=1, is_sharded=True)
            is_alike = parts.is_close(full)
            is_resumed = is_alike and parts.resumed().equals(parts.continued())
        except Exception as error:
            raise RecipeError(f"{title} ({first_line(error)}); {advice}") from error
    if not is_alike:
        raise RecipeError(f"{title}: it updates them in another way; {advice}")
    if not is_resumed:
        raise RecipeError(f"{title}: its state is not sharded as they are, and does not survive a resume; {advice}")


class _Trial:
    """An optimizer over weights that it has updated twice."""

    def __init__(
        self, build: Build, samples: Sequence[SampleGroup], *, seed: int, is_sharded: bool = False, steps: int = 2
    ) -> None:
        self._build, self._samples, self._seed, self._is_sharded = build, samples, seed, is_sharded
        generator = torch.Generator().manual_seed(0)
        self.weights: list[nn.Parameter] = []
        groups = []
        for sample in samples:
            values = [0.1 * torch.randn(shape, generator=generator) for shape in sample.shapes]
            weights = [nn.Parameter(self._place(value, sample)) for value in values]
            groups.append({**sample.settings, "params": weights})
            self.weights += weights
        self._start = [full_tensor(weight.detach()).clone() for weight in self.weights]
        self.optimizer = build(groups)
        self._number = 0
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """Update the weights by gradients that depend on the number of the step."""
        generator = torch.Generator().manual_seed(1 + self._number)
        seed_generators(self._seed, Purpose.MODEL_DRAW, self._number)  # what an update might draw
        likes = [sample for sample in self._samples for _ in sample.shapes]
        for weight, sample in zip(self.weights, likes, strict=True):
            weight.grad = self._place(torch.randn(weight.shape, generator=generator), sample)
        with torch.no_grad():
            self.optimizer.step()
        self._number += 1

    def continued(self) -> "_Trial":
        """Return this trial after another step."""
        self.step()
        return self

    def resumed(self) -> "_Trial":
        """Return a trial after another step that was resumed from what a checkpoint has of this one."""
        saved = {name: tensor.clone() for name, tensor in optimizer_tensors(self._named(), self.optimizer).items()}
        other = _Trial(self._build, self._samples, seed=self._seed, is_sharded=self._is_sharded, steps=0)
        described = {name: (tensor.shape, tensor.dtype) for name, tensor in saved.items()}
        state = empty_optimizer_state(other._named(), other.optimizer, described)
        with torch.no_grad():
            for own, weight in zip(other.weights, self.weights, strict=True):
                own.copy_(weight)
            for name, tensor in saved.items():
                _copy(state, name, tensor)
        restore_optimizer(other._named(), other.optimizer, state)
        other._number = self._number
        other.step()
        return other

    def equals(self, other: "_Trial") -> bool:
        """Whether both have the same bits in their weights."""
        pairs = zip(self.weights, other.weights, strict=True)
        return all(torch.equal(local_shard(mine), local_shard(theirs)) for mine, theirs in pairs)

    def is_close(self, other: "_Trial") -> bool:
        """Whether the weights have changed in the same way, up to rounding."""
        for mine, theirs, start in zip(self.weights, other.weights, self._start, strict=True):
            change = (theirs.detach() - start).norm()
            if not (full_tensor(mine.detach()) - theirs.detach()).norm() <= _TOLERANCE * change + 1e-8:
                return False
        return True

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"weight-{number}", weight) for number, weight in enumerate(self.weights)]

    def _place(self, value: torch.Tensor, sample: SampleGroup) -> torch.Tensor:
        value = value.to(sample.like.device)
        return shard_like(value, sample.like) if self._is_sharded and is_sharded(sample.like) else value


def _copy(state: Tensors, name: str, value: torch.Tensor) -> None:
    """Copy a saved tensor into the one that a resume reads it into."""
    target = state[name]
    if is_sharded(target) and is_sharded(value):
        local_shard(target).copy_(local_shard(value))
    else:
        target.copy_(full_tensor(value))
