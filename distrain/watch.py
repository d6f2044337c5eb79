"""Watches what each step makes besides its loss: gradients, weights, statistics of norm layers and other buffers.

A finite loss may have a gradient that is not finite, and a finite gradient an update that overflows. What shows it
stays on the device until the losses are read.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from distrain.errors import ModelError
from distrain.sharding import own_part
from distrain.world import World

LARGEST_BYTES = 1 << 20  # what is copied in each step, on a CPU, to look at it all at once

MODERATE = 1e30  # a mask may hold the least float32, of which two overflow

Slot = tuple[nn.Module, str, str]  # a module, the name of its buffer, and that name in the whole network
Row = tuple[
    torch.Tensor, int
]  # of one step: the norms of so many gradients, one number for weights, one for buffers if any


class Watch:
    """Notes after each step whether its gradients, and the weights and buffers after it, are finite.

    Of gradients and weights it looks at 2-norms, which clipping needs anyway, and which overflow before a square of a
    gradient in the state of an optimizer does; of buffers at sums or largest values, since variances may be large. A
    buffer that is not finite when training starts, or next to that, a mask for example, is not watched.
    """

    def __init__(self, module: nn.Module) -> None:
        """Watch `module`, the network as its strategy trains it."""
        self._trained = {name: own_part(p) for name, p in module.named_parameters() if p.requires_grad}
        slots: list[Slot] = [
            (part, name, f"{path}.{name}" if path else name)
            for path, part in module.named_modules()
            for name, buffer in part.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        # A forward pass may put another tensor into the place of a buffer.
        self._slots = [slot for slot in slots if _is_statistic(slot) or is_moderate(_value(slot))]
        self._weights = list(self._trained.values())
        self._flat_weights = [weight.view(-1) for weight in self._weights] if _are_small(self._weights) else None
        self._has_small_buffers = _are_small([_value(slot) for slot in self._slots])
        self._rows: list[Row] = []
        self._taken: list[Row] = []

    def check(self, world: World, *, owner: str, advice: str) -> None:
        """Raise `ModelError` where a weight or a statistic is not finite; all ranks call it together."""
        statistics = {slot[2]: _value(slot) for slot in self._slots if _is_statistic(slot)}
        values = {**self._trained, **statistics}
        bad = [list(values)[place] for place in not_finite(list(values.values()))]
        if world.any_rank(bool(bad)):
            name = bad[0] if bad else "a weight"  # of another rank's part
            raise ModelError(f"{name} of {owner} holds values that are not finite; {advice}")

    def note(self, gradient_norms: Sequence[torch.Tensor]) -> None:
        """Note the step that has just updated the weights, without waiting for the device.

        `gradient_norms` are the 2-norms of its gradients, in the order of the weights; none where loss scaling has
        looked at them.
        """
        numbers = [*gradient_norms, self._look_at_weights()]
        if self._slots:
            numbers.append(self._look_at_buffers())
        self._rows.append((torch.stack(numbers), len(gradient_norms)))

    def take_marks(self, device: torch.device) -> torch.Tensor:
        """Return 1 for each step since the last call in which something is not finite, else 0: float64 [steps]."""
        self._taken, self._rows = self._rows, []
        if not self._taken:
            return torch.zeros(0, dtype=torch.float64, device=device)
        rows = [row for row, _ in self._taken]
        if len({len(row) for row in rows}) == 1:
            are_finite = torch.stack(rows).isfinite().all(dim=1)
        else:  # some weights joined in or froze on the way
            are_finite = torch.stack([row.isfinite().all() for row in rows])
        return are_finite.logical_not().double()

    def explain(self, place: int, world: World) -> str:
        """Return what was not finite in the marked step at `place` of the last `take_marks`.

        All ranks call it together; it waits for the device.
        """
        row, num_gradients = self._taken[place]
        counts: list[int] = world.all_reduce((~row.isfinite()).cpu().int()).tolist()
        if any(gradients := counts[:num_gradients]):
            # The backward pass has come to the last one first: it is the nearest to the cause.
            last = max(index for index, count in enumerate(gradients) if count)
            names = list(self._trained)
            return f"the gradient of {names[last]}" if num_gradients == len(names) else "a gradient"
        if any(
            counts[num_gradients + 1 :]
        ):  # it changes in the forward pass, before the weights; the first one has spoilt what follows
            bad = not_finite([_value(slot) for slot in self._slots])
            slot = self._slots[bad[0]] if bad else None
            kind = "a buffer" if slot is None else "the statistic" if _is_statistic(slot) else "the buffer"
            return f"{kind} {slot[2]}" if slot else kind
        return "a weight after the update"

    def _look_at_weights(self) -> torch.Tensor:
        if self._flat_weights is not None:
            flat = torch.cat(self._flat_weights)
            return torch.dot(flat, flat)
        return torch.stack(norms_of(self._weights)).sum()

    def _look_at_buffers(self) -> torch.Tensor:
        values = [_value(slot) for slot in self._slots]
        if self._has_small_buffers:
            return torch.cat([value.reshape(-1) for value in values]).sum()
        if values[0].device.type == "cpu":
            return torch.stack([value.sum() for value in values]).sum()
        return torch.stack(norms_of([value for value in values if value.numel()], order=math.inf)).sum()


def norms_of(tensors: list[torch.Tensor], *, order: float = 2.0) -> list[torch.Tensor]:
    """Return the norms of tensors without a graph, on one device; they are not finite where a value is not."""
    if not tensors:
        return []
    if any(tensor.dtype == torch.float16 for tensor in tensors):  # in which a norm would overflow
        tensors = [tensor.float() for tensor in tensors]
    return list(torch._foreach_norm(tensors, order))


def not_finite(tensors: list[torch.Tensor]) -> list[int]:
    """Return the places of the tensors that hold values that are not finite; it waits for the device."""
    return [place for place, tensor in enumerate(tensors) if not tensor.isfinite().all()]


def is_moderate(buffer: torch.Tensor) -> bool:
    """Whether a buffer has values, and all of them are so small that no sum overflows; it waits for the device."""
    return buffer.numel() > 0 and bool(buffer.abs().amax() < MODERATE)


def _are_small(tensors: list[torch.Tensor]) -> bool:
    """Whether tensors on a CPU, of one dtype, are quicker looked at in one copy than one by one."""
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    kinds = {(tensor.device.type, tensor.dtype) for tensor in tensors}
    is_plain = all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in tensors)
    return len(kinds) == 1 and kinds.pop()[0] == "cpu" and is_plain and num_bytes <= LARGEST_BYTES


def _is_statistic(slot: Slot) -> bool:
    return isinstance(slot[0], _NormBase)


def _value(slot: Slot) -> torch.Tensor:
    buffer = slot[0]._buffers[slot[1]]
    return torch.zeros(()) if buffer is None else buffer.detach()
