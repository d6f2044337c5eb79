"""Lists the content of an image folder, a pack or a manifest: images by split and class, and other files."""

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np

from distrain.config.data import Split
from distrain.config.metrics import Target
from distrain.data.inspection.open_image import packed_address
from distrain.data.layout.image_folder import VALIDATION_NAMES

WHOLE = "all"  # the only split of a folder that has class folders but no train/ or val/


class Paths:
    """Paths relative to the folder, in one buffer: a million strings would take about 100 MB more."""

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
        """Whether any of the paths contains this ASCII text, whatever its case."""
        return part.encode() in self._text.lower()

    def __iter__(self) -> Iterator[str]:
        """Yield the paths in order."""
        return (self[index] for index in range(len(self)))


@dataclass
class Listing:
    """The content of `root`: image i is `paths[i]`, of `splits[split_of[i]]` and of the classes `groups[group_of[i]]`.

    A group has one class, or any number where images have labels; two images of one group have the same targets.
    `others` are the files in class folders that do not have an image suffix: training skips them.
    """

    root: Path
    splits: tuple[str, ...]
    classes: tuple[str, ...]  # of all splits, sorted
    folders: dict[str, tuple[str, ...]]  # the classes of each split, including empty class folders
    groups: tuple[tuple[int, ...], ...]  # numbers of `classes`
    form: Literal["folders", "pack", "manifest"] = "folders"
    target: Target = "class"
    source: Path | None = None  # the path that the user gave, where it is not `root`
    paths: Paths = field(default_factory=Paths)
    split_of: "array[int]" = field(default_factory=lambda: array("B"))
    group_of: "array[int]" = field(default_factory=lambda: array("I"))
    others: Paths = field(default_factory=Paths)
    stray_files: list[str] = field(default_factory=list)  # beside class folders or beside splits
    stray_folders: list[str] = field(default_factory=list)  # beside splits
    packed: dict[Split, int] = field(default_factory=dict)  # of a packed dataset: the first image of each split
    skipped: list[str] = field(default_factory=list)  # hidden and system files and folders; folders end in /
    links: list[str] = field(default_factory=list)  # to folders that are read anyway
    changes: tuple[str, ...] = ()  # the user's settings for reading the data, as `data.A=B`
    notes: tuple[str, ...] = ()  # on how a manifest was read
    nested: Counter[str] = field(default_factory=Counter)  # folders in class folders, and the images directly in each

    @property
    def is_single_split(self) -> bool:
        """Whether the class folders are directly in the folder, without splits."""
        return self.splits == (WHOLE,)

    @property
    def training(self) -> str:
        """The split that training uses."""
        return "train" if "train" in self.splits else self.splits[0]

    @property
    def validation(self) -> str | None:
        """The split that training validates on: the first one present of val, valid, validation and test."""
        return next((name for name in VALIDATION_NAMES if name in self.splits), None)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by split and class, for the class folders of each split."""
        cells = np.array(self.split_of, np.int64) * len(self.groups) + np.array(self.group_of, np.int64)
        tally = np.bincount(cells, minlength=len(self.splits) * len(self.groups)).reshape(len(self.splits), -1)
        counts = {split: dict.fromkeys(self.folders[split], 0) for split in self.splits}
        for split, row in zip(self.splits, tally.tolist(), strict=True):
            for group, count in zip(self.groups, row, strict=True):
                for label in group if count else ():
                    counts[split][self.classes[label]] += count
        return counts

    def num_images(self) -> dict[str, int]:
        """Return the number of images of each split."""
        tally = np.bincount(np.array(self.split_of, np.int64), minlength=len(self.splits))
        return dict(zip(self.splits, tally.tolist(), strict=True))

    def classes_of(self, index: int) -> tuple[str, ...]:
        """Return the classes of image `index`."""
        return tuple(self.classes[label] for label in self.groups[self.group_of[index]])

    def name_split(self, split: str) -> str:
        """Return the name of a split for messages."""
        return f"{split}/" if self.form == "folders" else split

    def name_class(self, split: str, name: str) -> str:
        """Return the name of a class of a split for messages."""
        if self.form != "folders":
            return f"{name} in {split}"
        return f"{name}/" if self.is_single_split else f"{split}/{name}/"

    def address(self, index: int) -> str:
        """Return the address of image `index` for `open_image`."""
        if not self.packed:
            return self.absolute(self.paths[index])
        split = cast("Split", self.splits[self.split_of[index]])
        return packed_address(self.root, split, index - self.packed[split])

    def absolute(self, path: str) -> str:
        """Return the path to open a file of this folder."""
        return os.path.join(self.root, path)  # noqa: PTH118 - called once per image

    def relative(self, path: str) -> str:
        """Return a path relative to this folder."""
        return path.removeprefix(os.path.join(self.root, ""))  # noqa: PTH118 - called once per image
