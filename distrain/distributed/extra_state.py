"""Reads, writes and shares the extra state of a network and the state of a loss, which forward passes may change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from distrain.distributed.world import World
from distrain.tensors.dtensor import full_tensor
from distrain.tensors.module_state import (
    LOSS,
    MODEL,
    RANKS,
    LossFunction,
    Tensors,
    as_stateful,
    load_extra_state,
    pack,
    split,
    unpack,
    with_versions,
)


class ExtraState:
    """The extra state of a network and the state of a loss on this rank: tensors by their names in a checkpoint.

    It differs between ranks, since each rank sees other samples. Evaluation and exports use that of rank 0.
    """

    def __init__(
        self, model: nn.Module, loss_function: LossFunction | None = None, *, device: torch.device | None = None
    ) -> None:
        self._model = model
        loss = as_stateful(loss_function)
        self._loss = loss if loss is not None and loss.state_dict() else None
        self._device = device
        self.network_names = {f"{MODEL}{name}" for name in split(model)[1]}  # not packed

    @property
    def exists(self) -> bool:
        """Whether network or loss have such a state."""
        return bool(self.network_names) or self.has_loss

    @property
    def has_loss(self) -> bool:
        """Whether the loss has a state."""
        return self._loss is not None

    def read(self) -> Tensors:
        """Return a copy of this rank's state."""
        packed: Tensors = {}
        if self.network_names:
            packed |= _prefixed(MODEL, pack(split(self._model)[1], owner="the network"))
        if self._loss is not None:
            packed |= _prefixed(LOSS, pack(self._loss.state_dict(), owner="the loss"))
        return packed

    def write(self, packed: Tensors) -> None:
        """Load a state that `read` has returned, on this or another rank, in this or another process."""
        if network_state := _without(MODEL, packed):
            load_extra_state(self._model, network_state, device=self._device)
        if self._loss is not None and (loss_state := _without(LOSS, packed)):
            self._loss.load_state_dict(with_versions(unpack(loss_state, device=self._device), self._loss))

    def gather(self, world: World) -> Tensors:
        """Return the state of all ranks for a checkpoint, equal on every rank and on the CPU.

        The names of rank 0 have no prefix. The other ranks are included only if one of them differs from rank 0. All
        ranks must call it together.
        """
        if not self.exists:
            return {}
        first, *others = world.gather({name: full_tensor(tensor).cpu() for name, tensor in self.read().items()})
        if all(_are_equal(first, other) for other in others):
            return first
        for rank, other in enumerate(others, start=1):
            first |= _prefixed(f"{RANKS}{rank}.", other)
        return first

    @contextmanager
    def of_rank_zero(self, world: World) -> Iterator[None]:
        """Use the state of rank 0 on all ranks in the block, and restore each rank's own state at its end.

        All ranks must call it together.
        """
        with self.preserved():
            if self.exists:
                self.share(self.read(), world)
            yield

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore this rank's state at the end of the block."""
        saved = self.read()
        try:
            yield
        finally:
            self.write(saved)

    def share(self, packed: Tensors, world: World) -> None:
        """Load rank 0's `packed` state on all ranks, which must call it together."""
        self.write(world.from_rank_zero({name: full_tensor(tensor).cpu() for name, tensor in packed.items()}))


def load_loss(loss_function: LossFunction, packed: Tensors) -> None:
    """Load the packed state of a loss from a checkpoint; an empty one leaves the loss unchanged."""
    if packed and (loss := as_stateful(loss_function)) is not None:
        loss.load_state_dict(with_versions(unpack(packed), loss))


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _are_equal(first: Tensors, second: Tensors) -> bool:
    """Whether two states have the same bits; a NaN is equal to itself."""
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype
        and tensor.shape == second[name].shape
        and torch.equal(_bits(tensor), _bits(second[name]))
        for name, tensor in first.items()
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
