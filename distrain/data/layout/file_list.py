"""Describes image files by their paths and targets, without opening them."""

from dataclasses import dataclass

from distrain.config.metrics import Target


@dataclass(frozen=True)
class Listing:
    """One split's images: `paths[i]` has `targets[i]`, the number of its class or a number for each of `classes`.

    `notes` report, one sentence each, what a user should know about how the listing was made. For all splits together,
    those of the training split report what was skipped, and its `may_repeat` says whether two paths may lead to the
    same file.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    targets: tuple[int, ...] | tuple[tuple[float, ...], ...]
    target: Target = "class"
    notes: tuple[str, ...] = ()
    may_repeat: bool = False
