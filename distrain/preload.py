"""Imports the slow modules, above all those of training, at once and with garbage collection paused."""

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@cache
def preload() -> None:
    """Import torch, torchvision and the training plane; a second call does nothing."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler; read when torch is imported
    with gc_paused():
        import torch._dynamo  # noqa: F401 - torch's optimizers import it on first use
        import torchvision.transforms.v2  # noqa: F401

        import distrain.checkpoint.shards
        import distrain.training.trainer  # noqa: F401


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause Python's garbage collector in this block, for imports that stay loaded to the end.

    It would traverse the new objects again and again and find nothing, for 10% to 14% of the time. The objects are
    frozen: the collector never visits them later, so forks of this process keep sharing their memory.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # some libraries warn about objects that are left at exit
