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

Row = tuple[torch.Tensor, int]  # the norms of one step, float [gradients + values], and how many are of gradients


class Watch:
    """Notes after each step whether its gradients, and the weights and buffers after it, are finite.

    It looks at 2-norms, which clipping needs anyway, and which overflow before a square of a gradient in the state of
    an optimizer does; at largest absolute values for statistics, which may be large. A buffer that is not finite when
    training starts, a mask for example, is not watched.
    """

    def __init__(self, module: nn.Module) -> None:
        """Watch `module`, the network as its strategy trains it."""
        self._trained = {name: own_part(p) for name, p in module.named_parameters() if p.requires_grad}
        buffers = [
            (part, name, f"{path}.{name}" if path else name)
            for path, part in module.named_modules()
            for name, buffer in part.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        self._statistics = {path: part.get_buffer(name) for part, name, path in buffers if isinstance(part, _NormBase)}
        # Where they are: a forward pass may put another tensor there.
        others = [(part, name, path) for part, name, path in buffers if path not in self._statistics]
        self._others = [slot for slot in others if has_finite_norm(slot[0].get_buffer(slot[1]))]
        self._weights = list(self._trained.values())
        self._largest = list(self._statistics.values())
        self._names = [f"the weight {name} after the update" for name in self._trained]
        self._names += [f"the buffer {path}" for _, _, path in self._others]
        self._names += [f"the statistics {path}" for path in self._statistics]
        self._rows: list[Row] = []
        self._taken: list[Row] = []

    def check_start(self) -> None:
        """Raise `ModelError` where training would start from a weight or from statistics that are not finite."""
        values = {**self._trained, **self._statistics}
        for place in not_finite(list(values.values())):
            name = list(values)[place]
            raise ModelError(
                f"{name} holds values that are not finite before the first step; look at model.weights, or at how the "
                f"network makes its weights"
            )

    def note(self, gradient_norms: Sequence[torch.Tensor]) -> None:
        """Note the step that has just updated the weights, without waiting for the device.

        `gradient_norms` are the 2-norms of its gradients, in the order of the weights; none where loss scaling has
        looked at them.
        """
        others = [_value(part, name) for part, name, _ in self._others]
        norms = [*gradient_norms, *norms_of([*self._weights, *others]), *norms_of(self._largest, order=math.inf)]
        self._rows.append((torch.stack(norms), len(gradient_norms)))

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
        gradients, values = counts[:num_gradients], counts[num_gradients:]
        if any(gradients):
            # The backward pass has come to the last one first: it is the nearest to the cause.
            last = max(index for index, count in enumerate(gradients) if count)
            names = list(self._trained)
            return f"the gradient of {names[last]}" if num_gradients == len(names) else "the gradient"
        # Statistics, at the end, change in the forward pass: before the weights.
        first_statistics = len(values) - len(self._statistics)
        order: list[int] = [*range(first_statistics, len(values)), *range(first_statistics)]
        return self._names[next(index for index in order if values[index])]


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


def has_finite_norm(tensor: torch.Tensor) -> bool:
    """Whether the 2-norm of a tensor is finite; it waits for the device."""
    return bool(norms_of([tensor.detach()])[0].isfinite())


def _value(module: nn.Module, name: str) -> torch.Tensor:
    buffer = module._buffers[name]
    return torch.zeros(()) if buffer is None else buffer.detach()
