"""Owns the host copies from which a checkpoint is written while training changes the tensors themselves."""

import torch

from distrain.checkpoint.tensors import Tensors
from distrain.sharding import is_sharded, own_part


class Stager:
    """Copies tensors to memory that it keeps from save to save; page-locked where they come from a GPU."""

    def __init__(self) -> None:
        self._copies: Tensors = {}

    def stage(self, tensors: Tensors) -> Tensors:
        """Return copies on the host, whole when this returns; they are overwritten by the next call.

        A sharded tensor (`DTensor`) becomes one whose own shard is on the host: no rank gathers what others hold.
        """
        self._copies = {name: self._copy_for(name, tensor) for name, tensor in tensors.items()}
        is_on_gpu = False
        with torch.no_grad():
            for name, tensor in tensors.items():
                source = own_part(tensor)
                own_part(self._copies[name]).copy_(source, non_blocking=True)
                is_on_gpu |= source.is_cuda
        if is_on_gpu:
            torch.cuda.current_stream().synchronize()  # the next step must not change what is still being copied
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
