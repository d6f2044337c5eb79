"""Owns the running statistics of BatchNorm as one flat tensor, so that a step treats them all at once."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distrain.data.order import Window
from distrain.world import World


class BatchStatistics:
    """All running means and variances of a network, moved into `values`, of which the modules keep views.

    `counts` holds their `num_batches_tracked` in the same way. `others` are the network's remaining buffers.
    """

    def __init__(self, module: nn.Module) -> None:
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self.values = _flatten(norms, ("running_mean", "running_var"))  # float32 [2 x channels of all norms]
        self.counts = _flatten(norms, ("num_batches_tracked",))  # int64 [norms]
        owned = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
        self.others = [buffer for buffer in module.buffers() if id(buffer) not in owned]

    def average(self, window: Window, world: World) -> None:
        """Give all ranks the mean of the statistics of those that had work in `window`, and rank 0's other buffers."""
        if self.values is not None:
            if not window.own:
                self.values.zero_()  # this rank has seen nothing of this window
            dist.all_reduce(self.values)
            self.values /= min(world.size, window.num_pieces)
        self.share_rest(window, world)

    def share_rest(self, window: Window, world: World) -> None:
        """Give all ranks what is not averaged: the true counts, and rank 0's other buffers."""
        if self.counts is not None and window.num_pieces % world.size:
            dist.broadcast(self.counts, src=0)  # rank 0 always has work: it has the true count
        for buffer in self.others:
            dist.broadcast(buffer, src=0)


def _flatten(norms: list[_BatchNorm], names: tuple[str, ...]) -> torch.Tensor | None:
    named = [(norm, name) for norm in norms for name in names if getattr(norm, name) is not None]
    if not named:
        return None
    flat = torch.cat([norm.get_buffer(name).flatten() for norm, name in named])
    offset = 0
    for norm, name in named:
        buffer = norm.get_buffer(name)
        setattr(norm, name, flat[offset : offset + buffer.numel()].view_as(buffer))
        offset += buffer.numel()
    return flat
