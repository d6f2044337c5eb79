"""Owns what is known of image files before one is opened: their paths and their targets."""

from dataclasses import dataclass

from distrain.metrics import Target


@dataclass(frozen=True)
class Listing:
    """One split's images: `paths[i]` has `targets[i]`, the number of its class or a number for each of `classes`."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    targets: tuple[int, ...] | tuple[tuple[float, ...], ...]
    target: Target = "class"
