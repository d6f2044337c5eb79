"""Owns the imports that every training takes, seconds of them: made at once, out of the garbage collector's sight."""

import atexit
import gc
import os
from functools import cache


@cache
def preload() -> None:
    """Import torch, torchvision and the training plane; the second time there is nothing left to do.

    Python's garbage collector would go over all that comes, again and again, and find nothing: a tenth to a seventh of
    the time. It rests meanwhile, and never looks at it later, in this process or in its forks, which so go on sharing
    its memory.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's talk of itself; read when torch is loaded
    gc.disable()
    try:
        import torch._dynamo  # noqa: F401 - torch's optimizers import it at their first use
        import torchvision.transforms.v2  # noqa: F401

        import distrain.checkpoint.shards
        import distrain.engine  # noqa: F401
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries complain of what is left of them at the end
        gc.enable()
