"""Copies tensors to the host, so that a checkpoint can be written while training changes the originals."""

import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager, nullcontext

import torch

from distrain.checkpoint.tensors import Tensors
from distrain.distributed.world import World
from distrain.errors import ModelError
from distrain.tensors.devices import use_device
from distrain.tensors.dtensor import is_sharded, local_shard, with_local_shard


def written_here(tensors: Tensors, world: World) -> set[str]:
    """Return the names of the tensors that this rank writes; `tensors` has the same names on all ranks.

    These are all sharded tensors, of which each rank writes its shard, and a share of the replicated ones: each of
    those goes to the rank with the fewest bytes so far, the same choice as torch.distributed.checkpoint makes.
    """
    loads = [0] * world.size
    names: set[str] = set()
    for name, tensor in tensors.items():
        writer = world.rank if is_sharded(tensor) else loads.index(min(loads))
        if writer == world.rank:
            names.add(name)
        if not is_sharded(tensor):
            loads[writer] += tensor.nbytes or 1
    return names


class StagedTensors:
    """A snapshot of tensors. The `stable` ones are not copied: the caller does not change them until `release`.

    `written` names the tensors that this rank writes, by default all; `names` has the names of all tensors. Changes of
    stable tensors are detected on all of them, written here or not, so that every rank raises the same error.
    """

    def __init__(self, tensors: Tensors, *, stable: Set[str] = frozenset(), written: Set[str] | None = None) -> None:
        self.names = list(tensors)
        to_write = tensors if written is None else {name: tensors[name] for name in tensors if name in written}
        with torch.no_grad():
            self.tensors = {n: tensor.detach() if n in stable else tensor.clone() for n, tensor in to_write.items()}
        self._stable = {name: local_shard(tensors[name]) for name in stable}
        self._versions = {name: tensor._version for name, tensor in self._stable.items()}
        self._stream: torch.cuda.Stream | None = None
        gpu = next((part.device for part in map(local_shard, self.tensors.values()) if part.is_cuda), None)
        if gpu is not None:
            self._stream = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(gpu))
        self._are_copies_queued = threading.Event()  # on the CPU: done

    @contextmanager
    def on_copy_stream(self) -> Iterator[None]:
        """Run the block's copies on their own stream, in another thread than training; they are complete at its end."""
        if self._stream is not None:
            use_device(self._stream.device)
        try:
            with torch.no_grad(), torch.cuda.stream(self._stream) if self._stream else nullcontext():
                yield
        finally:
            self._are_copies_queued.set()  # or never will be, after an error
        if self._stream is not None:
            self._stream.synchronize()

    def release(self) -> None:
        """Wait until the tensors may change; raises `ModelError` if stable ones have already changed.

        The host does not wait for the copies on a GPU: only the work that it enqueues from now on does.
        """
        self._are_copies_queued.wait()
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        for name, version in self._versions.items():
            if self._stable[name]._version != version:
                raise ModelError(
                    f"the network changed {name} outside the update, while it was being copied for a checkpoint; "
                    "--set checkpoint.asynchronous=false"
                )


class Stager:
    """Copies tensors to host memory that is reused in every save, and page-locked for tensors on a GPU."""

    def __init__(self) -> None:
        self._copies: Tensors = {}

    def stage(self, staged: StagedTensors) -> Tensors:
        """Return complete copies on the host; the next call overwrites them.

        The copy of a sharded tensor (`DTensor`) is one whose local shard is on the host: nothing is gathered.
        """
        with staged.on_copy_stream():
            self._copies = {name: self._copy_for(name, tensor) for name, tensor in staged.tensors.items()}
            targets = [local_shard(copy) for copy in self._copies.values()]
            sources = [local_shard(tensor) for tensor in staged.tensors.values()]
            if targets:  # a rank may have nothing to write
                torch._foreach_copy_(targets, sources, non_blocking=True)
        return self._copies

    def _copy_for(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        old = self._copies.get(name)
        if old is not None and old.dtype == tensor.dtype and local_shard(old).shape == local_shard(tensor).shape:
            return old
        shard = local_shard(tensor)
        copy = torch.empty_like(shard, device="cpu", pin_memory=shard.is_cuda)
        return with_local_shard(tensor, copy) if is_sharded(tensor) else copy
