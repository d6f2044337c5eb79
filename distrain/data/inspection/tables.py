"""Lists packed datasets and manifests, whose images may have classes, several labels or values."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrain.config.data import Data
from distrain.config.metrics import Target
from distrain.data.inspection.scan import Listing
from distrain.data.layout.manifest import read_manifest
from distrain.data.packing.format import PackedImages, read_pack


def list_pack(folder: Path) -> Listing:
    """List a packed dataset; raises `DataError` where it is damaged."""
    pack = read_pack(folder)
    images = {split: PackedImages(folder, pack, split) for split in pack.splits}
    targets = [found.targets() for found in images.values()]
    listing = _start_listing(folder, tuple(images), pack.classes, pack.target, targets)
    listing.form = "pack"
    for split, found in images.items():
        listing.packed[split] = len(listing.paths)
        for name in found.names():
            listing.paths.append(name)
    return listing


def list_manifest(config: Data) -> Listing:
    """List the images of a manifest, including missing ones; raises `DataError` for a malformed manifest.

    Paths are relative to its folder.
    """
    found = read_manifest(config, allow_missing=True)
    source = Path(str(config.path))
    root = source if source.is_dir() else source.parent
    targets = [np.array(each.targets) for each in found.values()]
    listing = _start_listing(root, tuple(found), found["train"].classes, config.target, targets)
    listing.form, listing.source, listing.notes = "manifest", source, found["train"].notes
    for each in found.values():
        for path in each.paths:
            listing.paths.append(listing.relative(path))
    return listing


def _start_listing(
    root: Path, splits: tuple[str, ...], classes: tuple[str, ...], target: Target, targets: list[NDArray[Any]]
) -> Listing:
    """Return a listing without paths, with the groups of all images; `targets` has an array for each split."""
    all_targets = np.concatenate(targets)
    groups: tuple[tuple[int, ...], ...] = tuple((number,) for number in range(len(classes)))
    group_of = all_targets
    if target != "class":
        rows, group_of = np.unique(all_targets, axis=0, return_inverse=True)
        groups = tuple(tuple(np.flatnonzero(row).tolist()) if target == "labels" else (0,) for row in rows)
        classes = classes if target == "labels" else ("with values",)
    listing = Listing(root, splits, classes, dict.fromkeys(splits, classes), groups, target=target)
    listing.group_of.extend(group_of.reshape(-1).tolist())
    for position, numbers in enumerate(targets):
        listing.split_of.extend([position] * len(numbers))
    for split, counts in listing.counts().items():
        if split != listing.training:
            listing.folders[split] = tuple(name for name, count in counts.items() if count)
    return listing
