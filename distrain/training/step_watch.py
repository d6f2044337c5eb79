"""Checks that gradients, weights, statistics of norm layers and other buffers are finite in each step.

A finite loss may have a gradient that is not finite, and a finite gradient an update that overflows. On a GPU, norms
are computed in each step and stay there until the losses are synced. On a CPU that would cost a small network a tenth
of its step time, so weights are checked only when the losses are synced: values that are not finite stay so. If there
are any, the run returns to its newest checkpoint and trains again with a check after each step, to find the cause.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from distrain.distributed.world import World
from distrain.errors import ModelError
from distrain.tensors.dtensor import local_shard

MODERATE = 1e30  # a mask may contain the smallest float32; the sum of two overflows

Slot = tuple[nn.Module, str, str]  # a module, the name of its buffer, and that name in the whole network
# Of one step: a number for each gradient, one for the weights and one for the buffers, each finite if its tensors are;
# and the number of gradients.
Row = tuple[torch.Tensor, int]


class Watch:
    """Records for each step whether its gradients, and the weights and buffers after it, are finite.

    It checks the 2-norms of gradients and weights, which clipping needs anyway, and sums or maxima of buffers, since
    variances may be large. A buffer that is not finite, or very large, when training starts, such as a mask, is not
    checked.
    """

    def __init__(self, module: nn.Module, *, every_step: bool) -> None:
        """Watch `module`, the network after its strategy has set it up.

        On a CPU, check after each step with `every_step`, otherwise only after the last one before `pop_marks`.
        """
        self._parameters = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self._weights = [local_shard(weight) for weight in self._parameters.values()]
        slots: list[Slot] = [
            (part, name, f"{path}.{name}" if path else name)
            for path, part in module.named_modules()
            for name, buffer in part.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        # Slots instead of tensors, since a forward pass may replace a buffer by another tensor.
        self._slots = [slot for slot in slots if _is_statistic(slot) or is_moderate(_value(slot))]
        self._nothing = self._weights[0].new_zeros(())
        self._is_on_host = self._nothing.device.type == "cpu"
        self.names_the_step = every_step or not self._is_on_host  # else the marked step or one before it is the cause
        self._num_unchecked = 0  # steps since the last check, if not every step is checked
        self._rows: list[Row | None] = []  # None: everything is finite
        self._marked_rows: list[Row | None] = []

    def check(self, world: World, *, owner: str, advice: str) -> None:
        """Raise `ModelError` if a weight or a statistic is not finite; all ranks must call it together."""
        statistics = {slot[2]: _value(slot) for slot in self._slots if _is_statistic(slot)}
        values = {**dict(zip(self._parameters, self._weights, strict=True)), **statistics}
        bad = [list(values)[place] for place in not_finite(list(values.values()))]
        if world.any_over_ranks(bool(bad)):
            name = bad[0] if bad else "a weight"  # in the shard of another rank
            raise ModelError(f"{name} of {owner} has values that are not finite; {advice}")

    def note(self, gradient_norms: Sequence[torch.Tensor]) -> None:
        """Record the step that has just updated the weights, without waiting for a GPU.

        `gradient_norms` are the 2-norms of its gradients, in the order of the weights, where `Precision.step` gives
        them. The gradients themselves are still those of the weights.
        """
        if not self.names_the_step:
            self._num_unchecked += 1
            return
        weights, buffers = self._check_weights(), self._check_buffers()
        if self._is_on_host and math.isfinite(weights) and math.isfinite(buffers):
            self._rows.append(None)
            return
        gradients = self._check_gradients(gradient_norms) if self._is_on_host else gradient_norms
        self._rows.append((torch.stack([*gradients, weights, buffers]), len(gradients)))

    def pop_marks(self, device: torch.device) -> torch.Tensor:
        """Return 1 for each step since the last call with values that are not finite, else 0: float64 [steps].

        If not every step is checked, only the last one can be marked, for all of them.
        """
        if not self.names_the_step:
            marks_on_host, self._num_unchecked = torch.zeros(self._num_unchecked, dtype=torch.float64), 0
            marks_on_host[-1:] = not math.isfinite(self._check_weights() + self._check_buffers())
            return marks_on_host
        self._marked_rows, self._rows = self._rows, []
        if self._is_on_host:
            return torch.tensor([row is not None for row in self._marked_rows], dtype=torch.float64)
        rows = [row[0] for row in self._marked_rows if row is not None]
        if len({len(row) for row in rows}) == 1:
            return torch.stack(rows).isfinite().all(dim=1).logical_not().double()
        # Weights were frozen or unfrozen in between.
        marks = [row.isfinite().all().logical_not().double() for row in rows]
        return torch.stack(marks) if marks else torch.zeros(0, dtype=torch.float64, device=device)

    def explain(self, place: int, world: World) -> str:
        """Return what was not finite in the marked step at `place` of the last `pop_marks`, where it names the step.

        All ranks must call it together; it waits for the device.
        """
        nothing = torch.zeros(len(self._parameters) + 2), len(self._parameters)  # another rank's part is not finite
        row, num_gradients = self._marked_rows[place] or nothing
        counts: list[int] = world.all_reduce((~row.isfinite()).cpu().int()).tolist()
        if counts[-1]:  # buffers change in the forward pass: the first one affects all that follow
            bad = not_finite([_value(slot) for slot in self._slots])
            return _name(self._slots[bad[0]]) if bad else "a buffer"
        if any(gradients := counts[:num_gradients]):
            # The backward pass reaches the last one first, so it is the nearest to the cause.
            last = max(index for index, count in enumerate(gradients) if count)
            names = list(self._parameters)
            return f"the gradient of {names[last]}" if num_gradients == len(names) else "a gradient"
        return "a weight after the update"

    def _check_weights(self) -> torch.Tensor:
        return torch.stack(norms_of(self._weights)).sum()

    def _check_gradients(self, known: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return a number for each weight: its gradient norm from before clipping, if known, or the gradient's sum."""
        norms = iter(known)
        gradients = [weight.grad for weight in self._parameters.values()]
        return [
            self._nothing if gradient is None else next(norms) if known else local_shard(gradient).sum()
            for gradient in gradients
        ]

    def _check_buffers(self) -> torch.Tensor:
        values = [value for slot in self._slots if (value := _value(slot)).numel()]
        if not values:
            return self._nothing
        if self._is_on_host:
            return torch.stack([value.sum() for value in values]).sum()
        return torch.stack(norms_of(values, order=math.inf)).sum()


def norms_of(tensors: list[torch.Tensor], *, order: float = 2.0) -> list[torch.Tensor]:
    """Return the norms of tensors on one device; the norm of a tensor is not finite if one of its values is not."""
    if not tensors:
        return []
    if any(tensor.dtype == torch.float16 for tensor in tensors):  # in which a norm would overflow
        tensors = [tensor.float() for tensor in tensors]
    return list(torch._foreach_norm(tensors, order))


def not_finite(tensors: list[torch.Tensor]) -> list[int]:
    """Return the indices of the tensors with values that are not finite; it waits for the device."""
    return [index for index, tensor in enumerate(tensors) if not tensor.isfinite().all()]


def is_moderate(buffer: torch.Tensor) -> bool:
    """Whether a buffer has values, and all of them are so small that no sum overflows; it waits for the device."""
    return buffer.numel() > 0 and bool(buffer.abs().amax() < MODERATE)


def _is_statistic(slot: Slot) -> bool:
    return isinstance(slot[0], _NormBase)


def _name(slot: Slot) -> str:
    return f"the statistic {slot[2]}" if _is_statistic(slot) else f"the buffer {slot[2]}"


def _value(slot: Slot) -> torch.Tensor:
    buffer = slot[0]._buffers[slot[1]]
    return torch.zeros(()) if buffer is None else buffer.detach()
