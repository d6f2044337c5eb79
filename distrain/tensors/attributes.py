"""Reads and restores plain attributes of modules, for known types of values."""

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
def preserve_attributes(module: nn.Module) -> Iterator[None]:
    """Restore the plain attributes of all modules of a network at the end, for known types of values.

    Tensors and generators get their old values again, lists and other containers their old items.
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
    """Return a module's attributes except weights, buffers, submodules, and those that torch gives every module."""
    return [(key, value) for key, value in vars(part).items() if key not in _INTERNAL]


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if is_storable(value) else None
    if isinstance(value, GENERATORS):
        return copy.deepcopy(value)
    return copy.copy(value) if type(value) in CONTAINERS else None


def _restored(value: Any, copied: Any) -> Any:
    """Return the attribute with the value that `_copy` saved."""
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
