"""Owns how the ranks' work on one step becomes one update: gradient reduction, and one set of BatchNorm statistics."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from distrain.data.order import Window
from distrain.world import World

_NO_CONTEXT: AbstractContextManager[None] = nullcontext()


class Parallel:
    """One replica of `module` a rank, which all take the same update at each step.

    In one process it does nothing. In several, DistributedDataParallel averages the gradients while the backward pass
    runs, and the running statistics of BatchNorm are averaged over the ranks once a step.
    """

    def __init__(self, module: nn.Module, world: World) -> None:
        self.module = module
        self._world = world
        self._replica: nn.Module = module
        if world.size == 1:
            return
        # This class keeps the buffers equal, with the statistics of all ranks and not of one.
        buffer_names = [name for name, _ in module.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, buffer_names)  # type: ignore[no-untyped-call]
        self._replica = DistributedDataParallel(
            module,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        self._statistics = _flatten_batch_statistics(module)
        owned = {id(buffer) for norm in _batch_norms(module) for buffer in norm.buffers(recurse=False)}
        self._other_buffers = [buffer for buffer in module.buffers() if id(buffer) not in owned]

    def replica_for(self, window: Window) -> nn.Module:
        """Return what to call in this window: the module itself where the ranks have unequal work."""
        return self.module if self._is_uneven(window) else self._replica

    def hold_back(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Return the context of a micro-batch's forward and backward pass: only the last one reduces gradients."""
        if is_last or self._world.size == 1:
            return _NO_CONTEXT
        assert isinstance(self._replica, DistributedDataParallel)
        return self._replica.no_sync()

    def finish_window(self, window: Window) -> None:
        """Make gradients and buffers equal on all ranks once the window's last backward pass has run."""
        if self._world.size == 1:
            return
        if self._is_uneven(window):
            self._average_gradients()
            for norm in _batch_norms(self.module):
                if norm.num_batches_tracked is not None:
                    dist.broadcast(norm.num_batches_tracked, src=0)  # rank 0 always has work: it has the true count
        if self._statistics is not None:
            if not window.own:
                self._statistics.zero_()  # this rank has seen nothing of this window
            dist.all_reduce(self._statistics)
            self._statistics /= min(self._world.size, window.num_pieces)
        for buffer in self._other_buffers:
            dist.broadcast(buffer, src=0)

    def _is_uneven(self, window: Window) -> bool:
        return self._world.size > 1 and window.num_pieces % self._world.size != 0

    def _average_gradients(self) -> None:
        """Average the gradients without DDP, whose reducer wants a backward pass of every rank."""
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self._world.size


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def _flatten_batch_statistics(module: nn.Module) -> torch.Tensor | None:
    """Move all running means and variances into one tensor, of which the modules keep views: one reduction a step."""
    named = [(norm, name) for norm in _batch_norms(module) for name in ("running_mean", "running_var")]
    if not named:
        return None
    flat = torch.cat([norm.get_buffer(name).flatten() for norm, name in named])
    offset = 0
    for norm, name in named:
        buffer = norm.get_buffer(name)
        setattr(norm, name, flat[offset : offset + buffer.numel()].view_as(buffer))
        offset += buffer.numel()
    return flat
