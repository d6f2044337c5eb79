"""Measures the memory of a rank: what is allocated between steps, and what a step adds."""

import torch

from distrain.benchmark.results import Memory
from distrain.distributed.exact import Exact
from distrain.system.memory import available_memory_bytes
from distrain.tensors.dtensor import local_shard
from distrain.training.device.allocator import forget_peak, resident_bytes
from distrain.training.session import Session


def size_of(tensors: list[torch.Tensor]) -> int:
    """Return the size of this rank's parts of the tensors in bytes."""
    parts = [local_shard(tensor) for tensor in tensors]
    return sum(part.numel() * part.element_size() for part in parts)


def gradient_bytes(session: Session) -> int:
    """Return the size of all gradients of this rank in bytes."""
    return size_of([parameter for parameter in session.model.parameters() if parameter.requires_grad])


class MemoryWatch:
    """Measures the peak memory of the steps between its creation and `read`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._device = session.world.device
        self._total = _total_bytes(self._device)
        forget_peak(self._device)  # the caches are emptied, too: the steps after it do not measure speed
        self._before = _now(self._device)

    def read(self) -> Memory:
        """Return the memory of the rank with the highest peak; all ranks call it together."""
        session, world = self._session, self._session.world
        gradients = gradient_bytes(session)
        optimizer = [
            value for state in session.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
        ]
        # Gradients are dropped between steps, so that they are part of what a step takes; exact mode keeps them.
        dropped = 0 if isinstance(session.strategy, Exact) else gradients
        peak = torch.cuda.max_memory_allocated(self._device) if self._is_cuda else resident_bytes("VmHWM")
        taken = torch.tensor([max(0, peak - self._before - dropped), peak])
        table = torch.zeros(world.size, 2, dtype=torch.int64)
        table[world.rank] = taken
        table = world.all_reduce(table)
        activations, peaks = table.T.tolist()
        return Memory(
            peak=max(peaks),
            peaks=peaks,
            weights=size_of([*session.model.parameters(), *session.model.buffers()]),
            gradients=gradients,
            optimizer=size_of(optimizer),
            averages=size_of(list(session.averaged_weights.values())),
            activations=max(activations),
            total=self._total,
        )

    @property
    def _is_cuda(self) -> bool:
        return self._device.type == "cuda"


def _now(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes("VmRSS")


def _total_bytes(device: torch.device) -> int | None:
    """Return what this rank's device has in all; on the CPU what is left, with what this process has already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    free = available_memory_bytes()
    return None if free is None else free + resident_bytes("VmRSS")
