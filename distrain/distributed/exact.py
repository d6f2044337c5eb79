"""Implements exact mode: the same bits on any number of processes.

The micro-batches of a step are the leaves of the fixed tree in `reduction_tree.py`. Each rank sums its micro-batches
as far as the tree allows; the ranks then combine their sums, bucket by bucket, while the last backward pass is still
running. BatchNorm's statistics are reduced with the gradients: every micro-batch starts from the statistics at the
start of the step, and the mean of the changes is applied at its end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from distrain.config.batching import Batching
from distrain.data.loading.sampler import GlobalBatch
from distrain.distributed.batchnorm_stats import BatchStatistics, broadcast_together
from distrain.distributed.bucket_reduction import BucketReducer, lay_out
from distrain.distributed.extra_state import ExtraState
from distrain.distributed.reduction_tree import Node, merge
from distrain.distributed.world import World
from distrain.errors import ModelError
from distrain.tensors.module_state import Tensors


class Exact:
    """Sums gradients in the order of the tree, in one flat buffer of which `parameter.grad` are views.

    Autograd itself adds the second of two sibling micro-batches to the first. The sums of earlier pairs are kept in at
    most log2(micro-batches) further buffers.
    """

    name = "exact"
    loss_scale = 1
    forward_is_collective = False

    def __init__(self, module: nn.Module, world: World, batching: Batching, *, extra: ExtraState | None = None) -> None:
        self.module = module
        self._world = world
        self._extra = extra or ExtraState(module)
        self._start_extra: Tensors = {}
        self._statistics = BatchStatistics(module)
        values = self._statistics.values
        self._starts = [torch.clone(buffer) for buffer in self._buffers]
        parameters = [p for p in module.parameters() if p.requires_grad]
        if len({p.dtype for p in parameters}) != 1:
            raise ModelError(
                "train.exact needs trainable weights that all have the same dtype; remove it for this model"
            )
        num_statistics = 0 if values is None else values.numel()
        self._buckets, offset = lay_out(list(parameters), num_statistics, world.size)
        self._reducer = BucketReducer(world, batching, num_buckets=len(self._buckets))
        self._flat = parameters[0].new_zeros(self._buckets[-1].stop)
        self._changes = self._flat[offset : offset + num_statistics]  # of the statistics, summed like a gradient
        self._current: Node | None = None  # the node whose sum is in the flat buffer
        self._waiting: dict[Node, torch.Tensor] = {}  # the sums of earlier micro-batches of this step
        self._spare: list[torch.Tensor] = []
        self._step = 0
        self._num_micro_batches = 0
        self._missing: list[int] | None = None  # in the last micro-batch: number of missing gradients per bucket
        self._next_bucket = 0
        self._hooks: list[RemovableHandle] = []
        for number, bucket in enumerate(self._buckets):
            for parameter, start in zip(bucket.parameters, bucket.offsets, strict=True):
                # With the strides of the weight: fused optimizers iterate over both in memory order.
                parameter.grad = self._flat.as_strided(parameter.shape, parameter.stride(), start)
                hook = parameter.register_post_accumulate_grad_hook(partial(self._note_gradient, number))  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def begin_step(self, global_batch: GlobalBatch, step: int) -> nn.Module:
        """Save the buffers, from which every micro-batch of the step starts."""
        for start, buffer in zip(self._starts, self._buffers, strict=True):
            start.copy_(buffer)
        self._start_extra = self._extra.read()
        self._step, self._num_micro_batches, self._current = step, global_batch.num_micro_batches, None
        return self.module

    @contextmanager
    def micro_batch(self, global_batch: GlobalBatch, index: int) -> Iterator[None]:
        """Sum one micro-batch into the tree; the last one submits each bucket as soon as it is complete."""
        if index % 2 == 1 and self._current == (0, index - 1):
            node = (1, index // 2)  # its sibling is in the buffer: autograd adds this one to it
        else:
            self._store_sum()
            self._flat.zero_()
            node = (0, index)
        self._rewind(is_first=index == global_batch.local[0])
        self._current = node
        if index == global_batch.local[-1]:
            self._missing = [len(bucket.parameters) for bucket in self._buckets]
            self._missing[-1] += 1  # the statistics
        yield
        if self._statistics.values is not None:
            self._changes.add_(self._statistics.values - self._starts[0])  # one addition per node, as in the tree
        if index == 0 and global_batch.local[-1] != 0:
            self._first_others = [buffer.clone() for buffer in self._statistics.others]
            self._first_extra = self._extra.read()

    def finish_step(self, global_batch: GlobalBatch, step: int) -> None:
        """Wait for the last buckets, and update the buffers."""
        while self._next_bucket < len(self._buckets):  # includes buckets with unused parameters
            self._submit_bucket()
        self._reducer.finish()
        self._next_bucket, self._missing = 0, None
        self._spare += self._waiting.values()
        self._waiting.clear()
        if self._statistics.values is not None:
            torch.add(self._starts[0], self._changes / global_batch.num_micro_batches, out=self._statistics.values)
        if self._statistics.counts is not None:
            self._statistics.counts.fill_(step + 1)
        self._share_other_buffers(global_batch)

    def zero_grad(self) -> None:
        """Do nothing: the first micro-batch of the next step clears the gradients."""

    def close(self) -> None:
        """End the thread of the reducer, and remove the hooks, by which the weights refer to this object."""
        for hook in self._hooks:
            hook.remove()
        self._reducer.close()

    @property
    def _buffers(self) -> list[torch.Tensor]:
        values = self._statistics.values
        return ([] if values is None else [values]) + self._statistics.others

    def _rewind(self, *, is_first: bool) -> None:
        """Restore the buffers to their values at the start of the step."""
        if not is_first:
            for start, buffer in zip(self._starts, self._buffers, strict=True):
                buffer.copy_(start)
            self._extra.write(self._start_extra)
        if self._statistics.counts is not None:
            self._statistics.counts.fill_(self._step)

    def _store_sum(self) -> None:
        """Free the flat buffer for the next micro-batch: merge its sum with the waiting ones, or copy it."""
        if self._current is None:
            return
        self._waiting[self._current] = self._flat

        def add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            if right is not self._flat:
                self._spare.append(right)
            return left.add_(right)

        merge(self._waiting, self._num_micro_batches, add)
        for node, sums in self._waiting.items():
            if sums is self._flat:
                buffer = self._spare.pop() if self._spare else torch.empty_like(self._flat)
                self._waiting[node] = buffer.copy_(self._flat)

    def _note_gradient(self, number: int, _: torch.Tensor) -> None:
        """Submit complete buckets, in the same order on all ranks."""
        if self._missing is None:
            return
        self._missing[number] -= 1
        while self._next_bucket < len(self._buckets) and self._missing[self._next_bucket] == 0:
            self._submit_bucket()

    def _submit_bucket(self) -> None:
        bucket = self._buckets[self._next_bucket]
        self._next_bucket += 1
        out = self._flat[bucket.start : bucket.stop]
        nodes = {node: sums[bucket.start : bucket.stop] for node, sums in self._waiting.items()}
        if self._current is not None:
            nodes[self._current] = out
        self._reducer.submit(out, nodes, self._num_micro_batches)

    def _share_other_buffers(self, global_batch: GlobalBatch) -> None:
        """Give every rank the other buffers and the extra state from after the step's first micro-batch."""
        others = self._statistics.others
        if self._world.is_rank_zero and global_batch.local[-1] != 0:
            for buffer, first in zip(others, self._first_others, strict=True):
                buffer.copy_(first)
            self._extra.write(self._first_extra)
        if self._world.size > 1:
            broadcast_together(others)
            if self._extra.exists:
                self._extra.share(
                    self._extra.read(), self._world
                )  # via the hosts, so that a device with extra state synchronizes
