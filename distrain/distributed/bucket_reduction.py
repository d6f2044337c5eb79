"""Combines the sums of the ranks of exact mode: bucket by bucket, in the order of the tree, beside the training.

Where every rank holds one whole subtree of equal height and their number is a power of two, neighbours of ever larger
groups reduce in pairs: a sum of two is the same in either order, so the library's own all-reduce keeps the tree's
order. Everywhere else each rank is sent one slice of all that the ranks hold, sums it, and the slices are gathered.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import nn

from distrain.config.batching import Batching
from distrain.distributed.reduction_tree import Node, covering_nodes, merge
from distrain.distributed.world import World
from distrain.tensors.devices import use_device

BUCKET_BYTES = (
    16 << 20
)  # travels at once: larger ones overlap less with the backward pass, smaller ones wait more often


@dataclass(frozen=True)
class Bucket:
    """A stretch of the flat buffer: some gradients at `offsets`, and padding to a multiple of the world size."""

    parameters: Sequence[nn.Parameter]
    offsets: Sequence[int]
    start: int
    stop: int


def lay_out(parameters: list[nn.Parameter], extra: int, world_size: int) -> tuple[list[Bucket], int]:
    """Return buckets of the parameters, last ones first as the backward pass gives them, and where `extra` begins.

    The `extra` numbers are at the end of the last bucket.
    """
    buckets: list[Bucket] = []
    start = 0
    while parameters or not buckets:
        offsets: list[int] = []
        offset = start
        inside: list[nn.Parameter] = []
        while parameters and (offset - start) * parameters[-1].element_size() < BUCKET_BYTES:
            parameter = parameters.pop()
            inside.append(parameter)
            offsets.append(offset)
            offset += parameter.numel()
        extra_start = offset
        offset += 0 if parameters else extra
        stop = start + -(-(offset - start) // world_size) * world_size
        buckets.append(Bucket(inside, offsets, start, stop))
        start = stop
    return buckets, extra_start


class BucketReducer:
    """Combines the ranks' sums of one bucket after the other, in a thread of its own where there are several."""

    def __init__(self, world: World, batching: Batching, *, num_buckets: int) -> None:
        self._world = world
        self._batching = batching
        self._held_by = lru_cache(maxsize=8)(self._find_held)
        self._pairs: list[dist.ProcessGroup] = []
        size = world.size
        if size & (size - 1) == 0:
            for distance in (1 << bit for bit in range(size.bit_length() - 1)):
                pair = sorted((world.rank, world.rank ^ distance))
                self._pairs.append(_group_of(tuple(pair), world.timeout, dist.group.WORLD))
        # Collectives of its own groups: they may run beside others, and all ranks make them in the same order.
        self._group = _group_of(tuple(range(size)), world.timeout, dist.group.WORLD) if size > 1 else None
        self._thread: ThreadPoolExecutor | None = None
        if num_buckets > 1 and size > 1:
            self._thread = ThreadPoolExecutor(1, "distrain-exchange", use_device, (world.device,))
        self._stream: torch.cuda.Stream | None = None
        if self._thread and world.device.type == "cuda":
            self._stream = torch.cuda.Stream(world.device)  # type: ignore[no-untyped-call]
        self._jobs: list[Future[None]] = []

    def submit(self, out: torch.Tensor, nodes: dict[Node, torch.Tensor], num_leaves: int) -> None:
        """Combine `nodes`, this rank's sums, with the other ranks', into `out`, which is the newest of them.

        All tensors have one dimension and equal lengths; they are written over.
        """
        if self._thread is None:
            self._combine(out, nodes, num_leaves)
            return
        ready = torch.cuda.current_stream().record_event() if self._stream else None
        self._jobs.append(self._thread.submit(self._combine_beside, out, nodes, num_leaves, ready))

    def finish(self) -> None:
        """Wait until everything submitted is done; raises what went wrong in it."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()
        if self._stream:
            torch.cuda.current_stream().wait_stream(self._stream)

    def close(self) -> None:
        """Give back the thread; the process groups stay for the next exchange of this process."""
        if self._thread is not None:
            self._thread.shutdown()

    def _combine_beside(
        self, out: torch.Tensor, nodes: dict[Node, torch.Tensor], num_leaves: int, ready: "torch.cuda.Event | None"
    ) -> None:
        context: AbstractContextManager[object] = torch.cuda.stream(self._stream) if self._stream else nullcontext()
        with torch.no_grad(), context:  # both are settings of a thread
            if self._stream and ready:
                self._stream.wait_event(ready)
            self._combine(out, nodes, num_leaves)

    def _combine(self, out: torch.Tensor, nodes: dict[Node, torch.Tensor], num_leaves: int) -> None:
        merge(nodes, num_leaves, lambda left, right: right.add_(left))
        if self._world.size == 1:
            return
        held_by = self._held_by(num_leaves)
        if self._are_equal_subtrees(held_by):
            for pair in self._pairs:
                dist.all_reduce(out, group=pair)
        else:
            self._combine_slices(out, [nodes[node] for node in held_by[self._world.rank]], held_by, num_leaves)

    def _combine_slices(
        self, out: torch.Tensor, held: list[torch.Tensor], held_by: list[tuple[Node, ...]], num_leaves: int
    ) -> None:
        size = self._world.size
        length = out.numel() // size
        sent = torch.stack(held).view(len(held), size, length).transpose(0, 1).reshape(-1) if held else out[:0]
        received = out.new_empty(sum(map(len, held_by)) * length)
        dist.all_to_all_single(
            received,
            sent.contiguous(),
            output_split_sizes=[len(nodes) * length for nodes in held_by],
            input_split_sizes=[len(held) * length] * size,
            group=self._group,
        )
        everything = [node for nodes in held_by for node in nodes]
        slices = dict(zip(everything, received.view(-1, length).unbind(), strict=True))
        merge(slices, num_leaves, lambda left, right: right.add_(left))
        (root,) = slices.values()
        dist.all_gather_into_tensor(out, root.contiguous(), group=self._group)

    def _find_held(self, num_leaves: int) -> list[tuple[Node, ...]]:
        ranges = [self._batching.assign(num_leaves, rank) for rank in range(self._world.size)]
        return [covering_nodes(own.start, own.stop, num_leaves) for own in ranges]

    def _are_equal_subtrees(self, held_by: list[tuple[Node, ...]]) -> bool:
        level = held_by[0][0][0]
        return bool(self._pairs) and all(nodes == ((level, rank),) for rank, nodes in enumerate(held_by))


@lru_cache(maxsize=64)
def _group_of(ranks: tuple[int, ...], timeout: timedelta, _: object) -> dist.ProcessGroup:
    """Return a group of some ranks of the world, which is the last argument, made once.

    To make one again after it was destroyed fails up to torch 2.11 at least, which gives it the same name.
    """
    group = dist.new_group(list(ranks), use_local_synchronization=True, timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)  # this rank is in it
    return group
