"""Copies tensors to the host, from where a checkpoint is written while training changes the tensors themselves."""

import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager, nullcontext

import torch

from distrain.checkpoint.tensors import Tensors
from distrain.devices import use_device
from distrain.errors import ModelError
from distrain.sharding import is_sharded, own_part


class Held:
    """The tensors of one moment, of which the `steady` ones are not copied: they stay as they are until `release`."""

    def __init__(self, tensors: Tensors, *, steady: Set[str] = frozenset()) -> None:
        with torch.no_grad():
            self.tensors = {n: tensor.detach() if n in steady else tensor.clone() for n, tensor in tensors.items()}
        self._versions = {name: own_part(self.tensors[name])._version for name in steady}
        self._stream: torch.cuda.Stream | None = None
        gpu = next((part.device for part in map(own_part, self.tensors.values()) if part.is_cuda), None)
        if gpu is not None:
            self._stream = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(gpu))
        self._are_copies_queued = threading.Event()  # on the CPU: done

    @contextmanager
    def beside_training(self) -> Iterator[None]:
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
            if own_part(self.tensors[name])._version != version:
                raise ModelError(
                    f"the network changed {name} outside of the update, while it was copied to a checkpoint; "
                    "--set checkpoint.asynchronous=false"
                )


class Stager:
    """Copies tensors to memory that it keeps from save to save; page-locked where they come from a GPU."""

    def __init__(self) -> None:
        self._copies: Tensors = {}

    def stage(self, held: Held) -> Tensors:
        """Return copies on the host, whole when this returns; they are overwritten by the next call.

        A sharded tensor (`DTensor`) becomes one whose own shard is on the host: no rank gathers what others hold.
        """
        with held.beside_training():
            self._copies = {name: self._copy_for(name, tensor) for name, tensor in held.tensors.items()}
            targets = [own_part(copy) for copy in self._copies.values()]
            sources = [own_part(tensor) for tensor in held.tensors.values()]
            torch._foreach_copy_(targets, sources, non_blocking=True)
        return self._copies

    def _copy_for(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        old = self._copies.get(name)
        if old is not None and old.dtype == tensor.dtype and own_part(old).shape == own_part(tensor).shape:
            return old
        pin_memory = own_part(tensor).is_cuda
        if is_sharded(tensor):
            from torch.distributed._state_dict_utils import _create_cpu_state_dict

            copy: torch.Tensor = _create_cpu_state_dict({name: tensor}, pin_memory=pin_memory)[name]
            return copy
        return torch.empty_like(tensor, device="cpu", pin_memory=pin_memory)
