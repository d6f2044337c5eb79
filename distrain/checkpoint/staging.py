"""Copies tensors to the host, from where a checkpoint is written while training changes the tensors themselves."""

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
    """Return the names of the tensors that this rank writes, of those that all ranks have by the same names.

    These are all that are sharded, its own part of each, and its share of the others: each is written by the rank that
    has the fewest bytes by then, as torch.distributed.checkpoint would choose.
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
    """The tensors of one moment, of which the `steady` ones are not copied: they stay as they are until `release`.

    `written` names those that this rank is to write, by default all; `names` are those of all. Whether the steady ones
    stay as they are is seen on all of them, so that every rank finds the same.
    """

    def __init__(self, tensors: Tensors, *, steady: Set[str] = frozenset(), written: Set[str] | None = None) -> None:
        self.names = list(tensors)
        own = tensors if written is None else {name: tensors[name] for name in tensors if name in written}
        with torch.no_grad():
            self.tensors = {n: tensor.detach() if n in steady else tensor.clone() for n, tensor in own.items()}
        self._steady = {name: local_shard(tensors[name]) for name in steady}
        self._versions = {name: tensor._version for name, tensor in self._steady.items()}
        self._stream: torch.cuda.Stream | None = None
        gpu = next((part.device for part in map(local_shard, self.tensors.values()) if part.is_cuda), None)
        if gpu is not None:
            self._stream = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(gpu))
        self._are_copies_queued = threading.Event()  # on the CPU: done

    @contextmanager
    def on_copy_stream(self) -> Iterator[None]:
        """Copy in this block, in another thread than the training's; at its end the copies are whole."""
        if self._stream is not None:
            use_device(self._stream.device)
        try:
            with torch.no_grad(), torch.cuda.stream(self._stream) if self._stream else nullcontext():
                yield
        finally:
            self._are_copies_queued.set()  # or will never be
        if self._stream is not None:
            self._stream.synchronize()

    def release(self) -> None:
        """Wait until the tensors may change; raises `ModelError` where steady ones have changed before.

        The host does not wait for a GPU's copies: the work that it queues from now on does.
        """
        self._are_copies_queued.wait()
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        for name, version in self._versions.items():
            if self._steady[name]._version != version:
                raise ModelError(
                    f"the network changed {name} outside of the update, while it was copied to a checkpoint; "
                    "--set checkpoint.asynchronous=false"
                )


class Stager:
    """Copies tensors to memory that it keeps from save to save; page-locked where they come from a GPU."""

    def __init__(self) -> None:
        self._copies: Tensors = {}

    def stage(self, held: StagedTensors) -> Tensors:
        """Return copies on the host, whole when this returns; they are overwritten by the next call.

        A sharded tensor (`DTensor`) becomes one whose own shard is on the host: no rank gathers what others hold.
        """
        with held.on_copy_stream():
            self._copies = {name: self._copy_for(name, tensor) for name, tensor in held.tensors.items()}
            targets = [local_shard(copy) for copy in self._copies.values()]
            sources = [local_shard(tensor) for tensor in held.tensors.values()]
            if targets:  # a rank may have none to write
                torch._foreach_copy_(targets, sources, non_blocking=True)
        return self._copies

    def _copy_for(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        old = self._copies.get(name)
        if old is not None and old.dtype == tensor.dtype and local_shard(old).shape == local_shard(tensor).shape:
            return old
        own = local_shard(tensor)
        copy = torch.empty_like(own, device="cpu", pin_memory=own.is_cuda)
        return with_local_shard(tensor, copy) if is_sharded(tensor) else copy
