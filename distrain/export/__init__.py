"""Bundles: a trained network in one folder, with everything that is needed to use it.

Other programs call `load`, which imports none of distrain's training code: `from_checkpoint` reads a run's checkpoint,
`write_bundle` and `graph` write bundles and graphs.
"""

from distrain.export.bundle import Bundle, load, read_state

__all__ = ["Bundle", "load", "read_state"]
