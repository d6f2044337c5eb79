"""Describes image files before one is opened: their paths and their targets."""

from dataclasses import dataclass

from distrain.config.metrics import Target


@dataclass(frozen=True)
class Listing:
    """One split's images: `paths[i]` has `targets[i]`, the number of its class or a number for each of `classes`.

    `notes` are what is worth knowing of how it was made, a sentence each. Those of the training images also tell of
    what was passed over in any split, as `may_repeat` tells whether two paths of any split may lead to the same file.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    targets: tuple[int, ...] | tuple[tuple[float, ...], ...]
    target: Target = "class"
    notes: tuple[str, ...] = ()
    may_repeat: bool = False
