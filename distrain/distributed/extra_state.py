"""Keeps what forward passes change besides weights and buffers: the extra state of a network, the state of a loss."""

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
    """The extra state of a network, and the state of a loss, on this rank: tensors by their names in a checkpoint.

    Each rank has its own, since each sees other samples. What is evaluated, and used after the training, is rank 0's.
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
        """Whether there is any."""
        return bool(self.network_names) or self.has_loss

    @property
    def has_loss(self) -> bool:
        """Whether the loss has a state."""
        return self._loss is not None

    def read(self) -> Tensors:
        """Return a copy of this rank's."""
        packed: Tensors = {}
        if self.network_names:
            packed |= _prefixed(MODEL, pack(split(self._model)[1], owner="the network"))
        if self._loss is not None:
            packed |= _prefixed(LOSS, pack(self._loss.state_dict(), owner="the loss"))
        return packed

    def write(self, packed: Tensors) -> None:
        """Give network and loss what `read` has returned, on this rank or another, before or in another process."""
        if of_network := _without(MODEL, packed):
            load_extra_state(self._model, of_network, device=self._device)
        if self._loss is not None and (of_loss := _without(LOSS, packed)):
            self._loss.load_state_dict(with_versions(unpack(of_loss, device=self._device), self._loss))

    def gather(self, world: World) -> Tensors:
        """Return what a checkpoint holds of all ranks', the same on each and on the CPU.

        Rank 0's has its plain names. Where any other's differs, all others are beside it. All ranks call it together.
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
        """Let all ranks have rank 0's, and each its own again at the end: what changes in between leaves no trace.

        All ranks call it together.
        """
        with self.kept():
            if self.exists:
                self.share(self.read(), world)
            yield

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Give this rank's back at the end."""
        own = self.read()
        try:
            yield
        finally:
            self.write(own)

    def share(self, packed: Tensors, world: World) -> None:
        """Give all ranks what is `packed` on rank 0. All ranks call it together."""
        self.write(world.from_rank_zero({name: full_tensor(tensor).cpu() for name, tensor in packed.items()}))


def load_loss(loss_function: LossFunction, packed: Tensors) -> None:
    """Give a loss the state that a checkpoint holds of it, packed; where it holds none, the loss stays as it is."""
    if packed and (loss := as_stateful(loss_function)) is not None:
        loss.load_state_dict(with_versions(unpack(packed), loss))


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _are_equal(first: Tensors, second: Tensors) -> bool:
    """Whether two states have the same bits: a NaN is equal to itself."""
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype
        and tensor.shape == second[name].shape
        and torch.equal(_bits(tensor), _bits(second[name]))
        for name, tensor in first.items()
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
