"""Implements exact mode: the same bits on every number of processes.

The micro-batches of a step are the leaves of the fixed tree of `reduction_tree.py`. Each rank sums its own neighbours
as far as the tree allows, while it trains; the ranks then combine what they hold, bucket by bucket, while the last
backward pass still runs. BatchNorm's statistics travel with the gradients: every micro-batch starts from those of the
step's start, and the mean of the changes is applied at its end.
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
    """Gradients in one flat buffer, of which `parameter.grad` are views, summed in the order of the tree.

    Autograd itself adds the second of two sibling micro-batches onto the first. The sums of earlier pairs wait in at
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
            raise ModelError("train.exact needs trainable weights, all of one dtype; remove it for this model")
        num_statistics = 0 if values is None else values.numel()
        self._buckets, offset = lay_out(list(parameters), num_statistics, world.size)
        self._exchange = BucketReducer(world, batching, num_buckets=len(self._buckets))
        self._flat = parameters[0].new_zeros(self._buckets[-1].stop)
        self._changes = self._flat[offset : offset + num_statistics]  # of the statistics, summed like a gradient
        self._fresh: Node | None = None  # what the flat buffer holds
        self._waiting: dict[Node, torch.Tensor] = {}  # the sums of earlier micro-batches of this step
        self._spare: list[torch.Tensor] = []
        self._step = 0
        self._num_pieces = 0
        self._lacking: list[int] | None = None  # during the last micro-batch: missing gradients of each bucket
        self._next_bucket = 0
        self._hooks: list[RemovableHandle] = []
        for number, bucket in enumerate(self._buckets):
            for parameter, start in zip(bucket.parameters, bucket.offsets, strict=True):
                # With the weight's own strides: fused optimizers go through both in the order of memory.
                parameter.grad = self._flat.as_strided(parameter.shape, parameter.stride(), start)
                hook = parameter.register_post_accumulate_grad_hook(partial(self._note_gradient, number))  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def begin_step(self, global_batch: GlobalBatch, step: int) -> nn.Module:
        """Remember the buffers as every micro-batch of the step will find them."""
        for start, buffer in zip(self._starts, self._buffers, strict=True):
            start.copy_(buffer)
        self._start_extra = self._extra.read()
        self._step, self._num_pieces, self._fresh = step, global_batch.num_micro_batches, None
        return self.module

    @contextmanager
    def micro_batch(self, global_batch: GlobalBatch, index: int) -> Iterator[None]:
        """Sum one micro-batch into the tree; the last one hands over each bucket as soon as it is whole."""
        if index % 2 == 1 and self._fresh == (0, index - 1):
            node = (1, index // 2)  # both siblings are here: autograd adds this one to the other
        else:
            self._put_aside()
            self._flat.zero_()
            node = (0, index)
        self._rewind(is_first=index == global_batch.local[0])
        self._fresh = node
        if index == global_batch.local[-1]:
            self._lacking = [len(bucket.parameters) for bucket in self._buckets]
            self._lacking[-1] += 1  # the statistics
        yield
        if self._statistics.values is not None:
            self._changes.add_(self._statistics.values - self._starts[0])  # one addition a node, as in the tree
        if index == 0 and global_batch.local[-1] != 0:
            self._first_others = [buffer.clone() for buffer in self._statistics.others]
            self._first_extra = self._extra.read()

    def finish_step(self, global_batch: GlobalBatch, step: int) -> None:
        """Wait for the last buckets, and give the buffers their new values."""
        while self._next_bucket < len(self._buckets):  # also those with a parameter that the loss does not depend on
            self._hand_over()
        self._exchange.finish()
        self._next_bucket, self._lacking = 0, None
        self._spare += self._waiting.values()
        self._waiting.clear()
        if self._statistics.values is not None:
            torch.add(self._starts[0], self._changes / global_batch.num_micro_batches, out=self._statistics.values)
        if self._statistics.counts is not None:
            self._statistics.counts.fill_(step + 1)
        self._share_other_buffers(global_batch)

    def zero_grad(self) -> None:
        """Keep the gradients where they are: the next step's first micro-batch clears them."""

    def close(self) -> None:
        """Give back the thread of the exchange, and the hooks, by which the weights refer to this."""
        for hook in self._hooks:
            hook.remove()
        self._exchange.close()

    @property
    def _buffers(self) -> list[torch.Tensor]:
        values = self._statistics.values
        return ([] if values is None else [values]) + self._statistics.others

    def _rewind(self, *, is_first: bool) -> None:
        """Let a micro-batch find the buffers as they were at the start of the step."""
        if not is_first:
            for start, buffer in zip(self._starts, self._buffers, strict=True):
                buffer.copy_(start)
            self._extra.write(self._start_extra)
        if self._statistics.counts is not None:
            self._statistics.counts.fill_(self._step)

    def _put_aside(self) -> None:
        """Free the flat buffer for the next micro-batch, adding its sum to those that wait as far as they fit."""
        if self._fresh is None:
            return
        self._waiting[self._fresh] = self._flat

        def add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            if right is not self._flat:
                self._spare.append(right)
            return left.add_(right)

        merge(self._waiting, self._num_pieces, add)
        for node, held in self._waiting.items():
            if held is self._flat:
                buffer = self._spare.pop() if self._spare else torch.empty_like(self._flat)
                self._waiting[node] = buffer.copy_(self._flat)

    def _note_gradient(self, number: int, _: torch.Tensor) -> None:
        """Hand over the buckets that are whole, in their order, which is the same on all ranks."""
        if self._lacking is None:
            return
        self._lacking[number] -= 1
        while self._next_bucket < len(self._buckets) and self._lacking[self._next_bucket] == 0:
            self._hand_over()

    def _hand_over(self) -> None:
        bucket = self._buckets[self._next_bucket]
        self._next_bucket += 1
        out = self._flat[bucket.start : bucket.stop]
        nodes = {node: held[bucket.start : bucket.stop] for node, held in self._waiting.items()}
        if self._fresh is not None:
            nodes[self._fresh] = out
        self._exchange.submit(out, nodes, self._num_pieces)

    def _share_other_buffers(self, global_batch: GlobalBatch) -> None:
        """Give every rank the other buffers, and extra state, as the step's first micro-batch left them."""
        others = self._statistics.others
        if self._world.is_rank_zero and global_batch.local[-1] != 0:
            for buffer, first in zip(others, self._first_others, strict=True):
                buffer.copy_(first)
            self._extra.write(self._first_extra)
        if self._world.size > 1:
            broadcast_together(others)
            if self._extra.exists:
                self._extra.share(self._extra.read(), self._world)  # over the hosts: a device waits, where it has any
