"""Owns the list of what lies in an image folder or a pack: its images by split and class, and all else."""

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from distrain.data.folder import VALIDATION_NAMES
from distrain.data.packfile import PackedImages, is_packed, read_pack
from distrain.data.walk import Walk
from distrain.errors import DataError
from distrain.inspect.opening import packed_address
from distrain.recipe.data import Split

WHOLE = "all"  # the one split of a folder that has class folders and no train/ or val/


class Paths:
    """Paths relative to the folder, in one buffer: a million of them as strings would take some 100 MB more."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("Q")

    def append(self, path: str) -> None:
        """Add one path."""
        self._text += os.fsencode(path)
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        """Return the number of paths."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """Return the path at `index`, counted from 0."""
        begin = self._ends[index - 1] if index else 0
        return os.fsdecode(bytes(self._text[begin : self._ends[index]]))

    def has(self, part: str) -> bool:
        """Whether any of the paths contains these ASCII letters, in either case."""
        return part.encode() in self._text.lower()

    def __iter__(self) -> Iterator[str]:
        """Yield the paths in order."""
        return (self[index] for index in range(len(self)))


@dataclass
class Listing:
    """What lies in `root`: image i is `paths[i]`, of `splits[split_of[i]]` and `classes[label_of[i]]`.

    `others` are the files in class folders that have no image suffix: a training passes over them.
    """

    root: Path
    splits: tuple[str, ...]
    classes: tuple[str, ...]  # of all splits, sorted
    folders: dict[str, tuple[str, ...]]  # split to its class folders, empty ones too
    paths: Paths = field(default_factory=Paths)
    split_of: "array[int]" = field(default_factory=lambda: array("B"))
    label_of: "array[int]" = field(default_factory=lambda: array("I"))
    others: Paths = field(default_factory=Paths)
    stray_files: list[str] = field(default_factory=list)  # beside class folders or beside splits
    stray_folders: list[str] = field(default_factory=list)  # beside splits
    packed: dict[Split, int] = field(default_factory=dict)  # of a packed dataset: the first image of each split
    skipped: list[str] = field(default_factory=list)  # hidden, or a system's own; folders end in /
    links: list[str] = field(default_factory=list)  # to folders that are read anyway
    nested: Counter[str] = field(default_factory=Counter)  # folders in class folders, and the images right in each

    @property
    def is_whole(self) -> bool:
        """Whether the folder has class folders right in it, and no splits."""
        return self.splits == (WHOLE,)

    @property
    def training(self) -> str:
        """The split that is trained on, or would be."""
        return "train" if "train" in self.splits else self.splits[0]

    @property
    def validation(self) -> str | None:
        """The split that a training validates on: the first that is there of val, valid, validation and test."""
        return next((name for name in VALIDATION_NAMES if name in self.splits), None)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by split and class, for the class folders that the split has."""
        places = np.array(self.split_of, np.int64) * len(self.classes) + np.array(self.label_of, np.int64)
        tally = np.bincount(places, minlength=len(self.splits) * len(self.classes)).reshape(len(self.splits), -1)
        number = {name: label for label, name in enumerate(self.classes)}
        return {
            split: {name: int(tally[position, number[name]]) for name in self.folders[split]}
            for position, split in enumerate(self.splits)
        }

    def address(self, index: int) -> str:
        """Return what opens image `index`, by `open_picture`."""
        if not self.packed:
            return self.absolute(self.paths[index])
        split = cast("Split", self.splits[self.split_of[index]])
        return packed_address(self.root, split, index - self.packed[split])

    def absolute(self, path: str) -> str:
        """Return the path from which a file of this folder is opened."""
        return os.path.join(self.root, path)  # noqa: PTH118 - called once an image

    def relative(self, path: str) -> str:
        """Return the path below this folder of what lies in it."""
        return path.removeprefix(os.path.join(self.root, ""))  # noqa: PTH118 - called once an image


def list_data(folder: Path) -> Listing:
    """List an image folder, or a packed dataset; raises `DataError` where it is neither."""
    return _list_pack(folder) if is_packed(folder) else list_folder(folder)


def list_folder(folder: Path) -> Listing:
    """List an image folder: train/ and val/ with a folder a class in each, or class folders alone.

    Raises `DataError` where the folder is missing, is no folder, or holds nothing like it. Images are what a training
    takes for one; folders in class folders belong to the class.
    """
    if not folder.is_dir():
        raise DataError(f"data folder {folder} {'is a file' if folder.exists() else 'does not exist'}")
    walk = Walk(folder)
    below, files = walk.look_in(folder)
    splits = [name for name in ("train", *VALIDATION_NAMES) if name in below]
    has_splits = "train" in splits or (bool(splits) and len(splits) == len(below))
    if not below:
        raise DataError(f"data folder {folder} holds no folder; put the images of each class into one of its own")
    if not has_splits:
        return _list_splits(folder, walk, {WHOLE: (below, files)})
    listing = _list_splits(folder, walk, {name: walk.look_in(folder / name) for name in splits})
    listing.stray_folders += [name for name in below if name not in splits]
    listing.stray_files += files
    return listing


def _list_pack(folder: Path) -> Listing:
    """List a packed dataset; samples with labels or values count as one class."""
    pack = read_pack(folder)
    classes = pack.classes if pack.target == "class" else (f"with {pack.target}",)
    splits = tuple(pack.splits)
    listing = Listing(folder, splits, classes, dict.fromkeys(splits, classes))
    for position, split in enumerate(splits):
        images = PackedImages(folder, pack, split)
        listing.packed[split] = len(listing.paths)
        labels = images.targets() if pack.target == "class" else np.zeros(len(images), np.int64)
        for name in images.names():
            listing.paths.append(name)
        listing.split_of.extend([position] * len(images))
        listing.label_of.extend(labels.tolist())
        if position:
            listing.folders[split] = tuple(classes[label] for label in np.unique(labels).tolist())
    return listing


def _list_splits(root: Path, walk: Walk, found: dict[str, tuple[list[str], list[str]]]) -> Listing:
    """List the splits, of each of which the names of its class folders and of the files beside them are known."""
    classes = tuple(sorted({name for names, _ in found.values() for name in names}))
    listing = Listing(root, tuple(found), classes, {split: tuple(names) for split, (names, _) in found.items()})
    number = {name: label for label, name in enumerate(classes)}
    for position, (split, (names, files)) in enumerate(found.items()):
        prefix = "" if split == WHOLE else f"{split}/"
        listing.stray_files += [prefix + name for name in files]
        walk.begin([root / f"{prefix}{name}" for name in names])
        for name in names:
            _list_class(listing, walk, prefix + name, split=position, label=number[name])
    listing.skipped += map(listing.relative, [*walk.files, *(f"{path}/" for path in walk.folders)])
    listing.links += map(listing.relative, walk.links)
    return listing


def _list_class(listing: Listing, walk: Walk, top: str, *, split: int, label: int) -> None:
    """Add the files of one class, as deep as a training goes."""
    for folder in walk.below(listing.absolute(top)):
        where = listing.relative(folder.path)
        names = sorted(image.name for image in folder.images)
        for name in names:
            listing.paths.append(f"{where}/{name}")
            listing.split_of.append(split)
            listing.label_of.append(label)
        for path in sorted(folder.others):
            listing.others.append(listing.relative(path))
        if where != top and (names or not folder.has_folders):
            listing.nested[where] = len(names)
