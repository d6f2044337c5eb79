"""Owns what is known of image files before one is opened: their paths and their targets."""

from dataclasses import dataclass

from distrain.metrics import Target


@dataclass(frozen=True)
class Listing:
    """One split's images: `paths[i]` has `targets[i]`, the number of its class or a number for each of `classes`.

    That of the training images tells what is worth knowing of all splits: in `notes`, a sentence each, what was chosen
    or passed over, and in `may_repeat` whether two paths may lead to the same file.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    targets: tuple[int, ...] | tuple[tuple[float, ...], ...]
    target: Target = "class"
    notes: tuple[str, ...] = ()
    may_repeat: bool = False
