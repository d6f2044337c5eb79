"""Undoes what passes through a network or a loss have changed in it, and in the random numbers."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from distrain.tensors.attributes import kept_attributes
from distrain.tensors.module_state import Tensors, as_stateful, kept_buffers, load_extra_state, pack, split, unpack


@contextmanager
def preserve_state(owner: object) -> Iterator[None]:
    """Restore, after passes in any mode, all that they have changed in a network or a loss, and the random numbers.

    These are modes, weights, buffers, extra state and plain attributes; of what is not a module, its state, if it has
    one. Weights are kept on the host meanwhile: a layer may set them by its first batch. `breakpoint()` does not stop
    in such a pass: the ones that it is meant for are still to come.
    """
    module = owner if isinstance(owner, nn.Module) else nn.Module()
    modes = [(part, part.training) for part in module.modules()]
    weights = [(weight, weight.detach().to("cpu", copy=True)) for weight in module.parameters()]
    extra = pack_extra(owner, name="the network or loss")
    gpus = {weight.device.index for weight in module.parameters() if weight.is_cuda}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    may_search, stop_here = torch.backends.cudnn.benchmark, sys.breakpointhook
    torch.backends.cudnn.benchmark = False  # no search for the fastest kernels of a batch that never comes again
    sys.breakpointhook = _pass_by
    try:
        with kept_attributes(module), kept_buffers(module), torch.random.fork_rng(devices=gpus):
            yield
    finally:
        torch.backends.cudnn.benchmark, sys.breakpointhook = may_search, stop_here
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for part, was_training in modes:
            part.training = was_training
        with torch.no_grad():
            for weight, value in weights:
                weight.copy_(value)
        if extra:
            _load_extra(owner, extra)


def _pass_by(*_: object, **__: object) -> None:
    """Do nothing where `breakpoint()` is called."""


def pack_extra(owner: object, *, name: str) -> Tensors:
    """Return what a module has besides weights and buffers, or all that another object gives as its state."""
    if isinstance(owner, nn.Module):
        return pack(split(owner)[1], owner=name)
    stateful = as_stateful(owner)
    return {} if stateful is None else pack(stateful.state_dict(), owner=name)


def _load_extra(owner: object, packed: Tensors) -> None:
    if isinstance(owner, nn.Module):
        load_extra_state(owner, packed)
    elif (stateful := as_stateful(owner)) is not None:
        stateful.load_state_dict(unpack(packed))
