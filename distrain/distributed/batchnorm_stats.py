"""Keeps the buffers of a network equal on all ranks: BatchNorm's statistics, and other buffers that change."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distrain.data.loading.sampler import GlobalBatch
from distrain.distributed.world import World
from distrain.tensors.module_state import buffer_slots


class BatchStatistics:
    """All running means and variances of a network in one tensor, `values`; the modules' buffers become views of it.

    `counts` is the same for their `num_batches_tracked`. Most other buffers of a network are constants, for example
    position tables; only those that have changed on some rank are sent.
    """

    def __init__(self, module: nn.Module) -> None:
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self.values = _flatten(norms, ("running_mean", "running_var"))  # float32 [2 x channels of all norms]
        self.counts = _flatten(norms, ("num_batches_tracked",))  # int64 [norms]
        owned = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
        self._slots = [(part, name) for part, name in buffer_slots(module) if id(part.get_buffer(name)) not in owned]
        self._changing: set[int] = set()  # the indices in `others` of buffers that have changed
        self._before: list[tuple[torch.Tensor, int]] = []  # (tensor, version) before a step's passes
        self._before_first: list[torch.Tensor] | None = None

    @property
    def others(self) -> list[torch.Tensor]:
        """The remaining buffers, looked up at each call: a network may replace a buffer by another tensor."""
        return [buffer for part, name in self._slots if (buffer := part._buffers[name]) is not None]

    def begin(self) -> None:
        """Remember the other buffers before the passes of a step."""
        if not self._slots:
            return
        others = self.others
        if not self._before:
            self._before_first = [buffer.clone() for buffer in others]
        self._before = [(buffer, buffer._version) for buffer in others]

    def average(self, global_batch: GlobalBatch, world: World) -> None:
        """Average the statistics over the ranks with work in `global_batch`, and broadcast rank 0's other buffers."""
        if self.values is not None:
            if not global_batch.local:
                self.values.zero_()  # this rank had no part of this global batch
            dist.all_reduce(self.values)
            self.values /= min(world.size, global_batch.num_micro_batches)
        self.share_rest(global_batch, world)

    def share_rest(self, global_batch: GlobalBatch, world: World) -> None:
        """Broadcast what is not averaged: the counts and the other buffers of rank 0."""
        if self.counts is not None and global_batch.num_micro_batches % world.size:
            dist.broadcast(self.counts, src=0)  # rank 0 always has work, so its count is right
        others = self.others
        unchanged = [index for index in range(len(others)) if index not in self._changing]
        if unchanged:  # one number each, reduced on the hosts, so that no device synchronizes
            have_changed = world.all_reduce(
                torch.tensor([int(self._has_changed(index, others[index])) for index in unchanged])
            )
            self._changing |= {index for index, count in zip(unchanged, have_changed.tolist(), strict=True) if count}
            self._before_first = None
        broadcast_together([others[index] for index in sorted(self._changing)])

    def _has_changed(self, index: int, buffer: torch.Tensor) -> bool:
        """Whether a buffer has changed in this step on this rank.

        torch counts in-place writes, except those through `.data`; therefore the first step also compares the values.
        """
        before, version = self._before[index]
        if buffer is not before or buffer._version != version:
            return True
        return self._before_first is not None and not torch.equal(buffer, self._before_first[index])


def broadcast_together(buffers: list[torch.Tensor]) -> None:
    """Broadcast tensors of any dtypes from rank 0, in one call."""
    if not buffers:
        return
    parts = [buffer.contiguous().reshape(-1).view(torch.uint8) for buffer in buffers]
    flat = torch.cat(parts)
    dist.broadcast(flat, src=0)
    for buffer, part in zip(buffers, torch.split(flat, [len(part) for part in parts]), strict=True):
        buffer.copy_(part.clone().view(buffer.dtype).view(buffer.shape))  # the clone aligns the memory for its dtype


def average_together(gradients: list[torch.Tensor], *, size: int) -> None:
    """Replace tensors of one dtype by their means over `size` ranks, in one call."""
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= size
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))


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
