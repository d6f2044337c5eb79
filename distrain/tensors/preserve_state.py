"""Undoes the changes that passes make to a network or a loss, and to the random generators."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from distrain.tensors.attributes import preserve_attributes
from distrain.tensors.module_state import Tensors, as_stateful, load_extra_state, pack, preserve_buffers, split, unpack


@contextmanager
def preserve_state(owner: object) -> Iterator[None]:
    """Restore everything that passes change in a network or a loss, and the random generators.

    This covers modes, weights, buffers, extra state and plain attributes; for an object that is not a module, its state
    if it has one. A copy of the weights is kept on the host, since a layer may set them by its first batch.
    `breakpoint()` does not stop in these passes: it is meant for later ones.
    """
    module = owner if isinstance(owner, nn.Module) else nn.Module()
    modes = [(part, part.training) for part in module.modules()]
    weights = [(weight, weight.detach().to("cpu", copy=True)) for weight in module.parameters()]
    extra = pack_extra(owner, name="the network or loss")
    gpus = {weight.device.index for weight in module.parameters() if weight.is_cuda}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    may_search, stop_here = torch.backends.cudnn.benchmark, sys.breakpointhook
    torch.backends.cudnn.benchmark = False  # no search for the fastest kernels for a batch that does not recur
    sys.breakpointhook = _ignore_breakpoint
    try:
        with preserve_attributes(module), preserve_buffers(module), torch.random.fork_rng(devices=gpus):
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


def _ignore_breakpoint(*_: object, **__: object) -> None:
    """Ignore `breakpoint()`."""


def pack_extra(owner: object, *, name: str) -> Tensors:
    """Return the packed extra state of a module, or the whole state of another object."""
    if isinstance(owner, nn.Module):
        return pack(split(owner)[1], owner=name)
    stateful = as_stateful(owner)
    return {} if stateful is None else pack(stateful.state_dict(), owner=name)


def _load_extra(owner: object, packed: Tensors) -> None:
    if isinstance(owner, nn.Module):
        load_extra_state(owner, packed)
    elif (stateful := as_stateful(owner)) is not None:
        stateful.load_state_dict(unpack(packed))
