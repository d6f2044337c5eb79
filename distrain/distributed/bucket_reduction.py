"""Combines the sums of the ranks in exact mode: bucket by bucket, in the order of the tree, during the backward pass.

If each rank holds one complete subtree of equal height, and the number of ranks is a power of two, pairs of ranks at
growing distances all-reduce: a sum of two has the same bits in either order, so the library's all-reduce keeps the
order of the tree. In all other cases each rank receives one slice of all partial sums, sums it, and the results are
gathered.
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

BUCKET_BYTES = 16 << 20  # larger buckets overlap less with the backward pass, smaller ones wait more often


@dataclass(frozen=True)
class Bucket:
    """A range of the flat buffer: the gradients at `offsets`, and padding to a multiple of the world size."""

    parameters: Sequence[nn.Parameter]
    offsets: Sequence[int]
    start: int
    stop: int


def lay_out(parameters: list[nn.Parameter], extra: int, world_size: int) -> tuple[list[Bucket], int]:
    """Return buckets of the parameters, in the order of the backward pass, and the offset of `extra`.

    The `extra` further elements are at the end of the last bucket.
    """
    buckets: list[Bucket] = []
    start = 0
    while parameters or not buckets:
        offsets: list[int] = []
        offset = start
        bucket_parameters: list[nn.Parameter] = []
        while parameters and (offset - start) * parameters[-1].element_size() < BUCKET_BYTES:
            parameter = parameters.pop()
            bucket_parameters.append(parameter)
            offsets.append(offset)
            offset += parameter.numel()
        extra_start = offset
        offset += 0 if parameters else extra
        stop = start + -(-(offset - start) // world_size) * world_size
        buckets.append(Bucket(bucket_parameters, offsets, start, stop))
        start = stop
    return buckets, extra_start


class BucketReducer:
    """Combines the sums of the ranks bucket by bucket, in a separate thread if there are several buckets."""

    def __init__(self, world: World, batching: Batching, *, num_buckets: int) -> None:
        self._world = world
        self._batching = batching
        self._rank_nodes = lru_cache(maxsize=8)(self._find_rank_nodes)
        self._pairs: list[dist.ProcessGroup] = []
        size = world.size
        if size & (size - 1) == 0:
            for distance in (1 << bit for bit in range(size.bit_length() - 1)):
                pair = sorted((world.rank, world.rank ^ distance))
                self._pairs.append(_group_of(tuple(pair), world.timeout, dist.group.WORLD))
        # Its own groups: these collectives may run concurrently with others, in the same order on all ranks.
        self._group = _group_of(tuple(range(size)), world.timeout, dist.group.WORLD) if size > 1 else None
        self._thread: ThreadPoolExecutor | None = None
        if num_buckets > 1 and size > 1:
            self._thread = ThreadPoolExecutor(1, "distrain-exchange", use_device, (world.device,))
        self._stream: torch.cuda.Stream | None = None
        if self._thread and world.device.type == "cuda":
            self._stream = torch.cuda.Stream(world.device)  # type: ignore[no-untyped-call]
        self._jobs: list[Future[None]] = []

    def submit(self, out: torch.Tensor, nodes: dict[Node, torch.Tensor], num_leaves: int) -> None:
        """Combine `nodes`, the sums of this rank, with those of the other ranks into `out`, the newest of `nodes`.

        All tensors have one dimension and equal lengths; they are overwritten.
        """
        if self._thread is None:
            self._combine(out, nodes, num_leaves)
            return
        ready = torch.cuda.current_stream().record_event() if self._stream else None
        self._jobs.append(self._thread.submit(self._combine_in_thread, out, nodes, num_leaves, ready))

    def finish(self) -> None:
        """Wait for everything submitted; raises the first error in it."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()
        if self._stream:
            torch.cuda.current_stream().wait_stream(self._stream)

    def close(self) -> None:
        """End the thread; the process groups are kept for the next reducer of this process."""
        if self._thread is not None:
            self._thread.shutdown()

    def _combine_in_thread(
        self, out: torch.Tensor, nodes: dict[Node, torch.Tensor], num_leaves: int, ready: "torch.cuda.Event | None"
    ) -> None:
        context: AbstractContextManager[object] = torch.cuda.stream(self._stream) if self._stream else nullcontext()
        with torch.no_grad(), context:  # both settings are per thread
            if self._stream and ready:
                self._stream.wait_event(ready)
            self._combine(out, nodes, num_leaves)

    def _combine(self, out: torch.Tensor, nodes: dict[Node, torch.Tensor], num_leaves: int) -> None:
        merge(nodes, num_leaves, lambda left, right: right.add_(left))
        if self._world.size == 1:
            return
        rank_nodes = self._rank_nodes(num_leaves)
        if self._are_equal_subtrees(rank_nodes):
            for pair in self._pairs:
                dist.all_reduce(out, group=pair)
        else:
            self._combine_slices(out, [nodes[node] for node in rank_nodes[self._world.rank]], rank_nodes, num_leaves)

    def _combine_slices(
        self, out: torch.Tensor, local_sums: list[torch.Tensor], rank_nodes: list[tuple[Node, ...]], num_leaves: int
    ) -> None:
        size = self._world.size
        length = out.numel() // size
        sent = (
            torch.stack(local_sums).view(len(local_sums), size, length).transpose(0, 1).reshape(-1)
            if local_sums
            else out[:0]
        )
        received = out.new_empty(sum(map(len, rank_nodes)) * length)
        dist.all_to_all_single(
            received,
            sent.contiguous(),
            output_split_sizes=[len(nodes) * length for nodes in rank_nodes],
            input_split_sizes=[len(local_sums) * length] * size,
            group=self._group,
        )
        all_nodes = [node for nodes in rank_nodes for node in nodes]
        slices = dict(zip(all_nodes, received.view(-1, length).unbind(), strict=True))
        merge(slices, num_leaves, lambda left, right: right.add_(left))
        (root,) = slices.values()
        dist.all_gather_into_tensor(out, root.contiguous(), group=self._group)

    def _find_rank_nodes(self, num_leaves: int) -> list[tuple[Node, ...]]:
        ranges = [self._batching.assign(num_leaves, rank) for rank in range(self._world.size)]
        return [covering_nodes(leaves.start, leaves.stop, num_leaves) for leaves in ranges]

    def _are_equal_subtrees(self, rank_nodes: list[tuple[Node, ...]]) -> bool:
        level = rank_nodes[0][0][0]
        return bool(self._pairs) and all(nodes == ((level, rank),) for rank, nodes in enumerate(rank_nodes))


@lru_cache(maxsize=64)
def _group_of(ranks: tuple[int, ...], timeout: timedelta, _: object) -> dist.ProcessGroup:
    """Return a group of ranks, created once per world, which is the last argument.

    Creating it again after it was destroyed fails (at least up to torch 2.11), because it gets the same name.
    """
    group = dist.new_group(list(ranks), use_local_synchronization=True, timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)  # this rank is in it
    return group
