"""Bundles: a trained network with all that is needed to use it, in one folder.

`load` is the way in for other programs. It takes none of distrain's training code with it: what reads a run's
checkpoint is imported from `trained`, what writes bundles and graphs from `write` and `graph`.
"""

from distrain.export.bundle import Bundle, load, read_state

__all__ = ["Bundle", "load", "read_state"]
