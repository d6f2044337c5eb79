"""Imports in one go, with garbage collection paused, the modules that take seconds, above all those of training."""

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@cache
def preload() -> None:
    """Import torch, torchvision and the training plane; the second time there is nothing left to do."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's talk of itself; read when torch is loaded
    with gc_paused():
        import torch._dynamo  # noqa: F401 - torch's optimizers import it at their first use
        import torchvision.transforms.v2  # noqa: F401

        import distrain.checkpoint.shards
        import distrain.training.trainer  # noqa: F401


@contextmanager
def gc_paused() -> Iterator[None]:
    """Import in this block what stays to the end, while Python's garbage collector rests.

    It would go over all that comes, again and again, and find nothing: a tenth to a seventh of the time. It never looks
    at it later, in this process or in its forks, which so go on sharing its memory.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # libraries complain of what is left of them at the end
