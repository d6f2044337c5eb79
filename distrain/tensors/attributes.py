"""Reads and gives back what modules hold in plain attributes, as far as the kinds of the values are known."""

import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from distrain.tensors.plain_values import is_storable

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
DICTS = {dict, OrderedDict, Counter, defaultdict}
CONTAINERS = {list, set, deque, *DICTS}
_INTERNAL = frozenset(vars(nn.Module()))


@contextmanager
def kept_attributes(module: nn.Module) -> Iterator[None]:
    """Give all modules of a network their plain attributes back at the end, as far as their kinds are known.

    Tensors and generators have the numbers that they had, lists and other containers the same items.
    """
    kept = [(part, {key: (value, _copy(value)) for key, value in plain_attributes(part)}) for part in module.modules()]
    try:
        yield
    finally:
        for part, values in kept:
            for key in [key for key, _ in plain_attributes(part) if key not in values]:
                del vars(part)[key]
            for key, (value, copied) in values.items():
                vars(part)[key] = _restored(value, copied)


def plain_attributes(part: nn.Module) -> list[tuple[str, Any]]:
    """Return what a module holds besides weights, buffers, other modules, and what torch keeps of every module."""
    return [(key, value) for key, value in vars(part).items() if key not in _INTERNAL]


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if is_storable(value) else None
    if isinstance(value, GENERATORS):
        return copy.deepcopy(value)
    return copy.copy(value) if type(value) in CONTAINERS else None


def _restored(value: Any, copied: Any) -> Any:
    """Return the attribute with what `_copy` has kept of it."""
    if copied is None:
        return value
    if isinstance(value, torch.Tensor):
        with torch.no_grad():
            return value if torch.equal(value, copied) else value.copy_(copied)
    if isinstance(value, GENERATORS):
        return copied
    value.clear()
    (value.extend if isinstance(value, list | deque) else value.update)(copied)
    return value
